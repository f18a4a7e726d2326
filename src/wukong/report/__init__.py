"""A run directory as one HTML page: `contents` reads it, `figures` draws it, `page` puts it together."""
