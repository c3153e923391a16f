"use strict";
const fs = require("fs");
fs.mkdirSync("dist", { recursive: true });
fs.writeFileSync("dist/index.js", fs.readFileSync("index.js", "utf8").replace(/^/gm, "  "));
