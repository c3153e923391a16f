"use strict";
const fs = require("fs");
fs.mkdirSync("report", { recursive: true });
fs.writeFileSync("report/size.txt", String(fs.statSync("dist/index.js").size) + "\n");
