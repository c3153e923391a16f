exports.marker = '@MARKER@ words';
