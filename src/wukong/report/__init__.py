"""A run directory as an HTML page: `contents` reads it, `figures` draws the charts, `page` assembles the page."""
