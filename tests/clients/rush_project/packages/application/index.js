exports.marker = '@MARKER@ application';
