exports.marker = '@MARKER@ lines';
