"""The files for browsers: ``wattfare.js``, its types and the page to return to."""
