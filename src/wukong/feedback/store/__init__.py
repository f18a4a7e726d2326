"""The label store: what people were shown, and what they said of it, in SQLite or PostgreSQL.

`database` opens it, `tables` says what is in it, `values` what a judgment looks like, `tasks` makes work, `queue` hands
it out, `labels` takes judgments in, `chats` keeps conversations, thumbs and the pairs that they gave rise to, `people`
knows who may do so, and `exchange` reads and writes files.
"""
