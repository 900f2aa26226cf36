"""A system in production, seen from outside: traces replayed over HTTP, result files of other load generators.

`observation` is the table, `journal` its file, `replay` the client. Needs aiohttp (the extra ``observe``); reading
recordings and result files does not.
"""
