"""The studio: a small web application over the label store and the run directory.

`command` serves it and `app` puts it together. `guard` and `access` protect it, `routes` has the pages and the API by
subject, `runs` reads and starts runs, `rendering` and `language` draw pages, and `state` is what all of them share.
"""
