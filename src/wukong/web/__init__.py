"""The studio: a small web application over the label store and the run directory.

`app` puts it together, `access` guards it, `pages` are what people see, `admin` what admins see and send, `api` what
the pages' scripts and other programs call, `texts` the languages, `studio` the command.
"""
