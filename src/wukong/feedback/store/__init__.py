"""The label store: what people were shown, and what they said of it, in SQLite or PostgreSQL.

`database` opens it, `tables` says what is in it, `values` what a judgment looks like, `tasks` makes work, `queue` hands
it out, `labels` takes judgments in, `people` knows who may do so, and `exchange` reads and writes files.
"""
