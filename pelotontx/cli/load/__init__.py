"""`peloton load`: many clients that call or publish, and an account of every message.

`options` reads the command line, `driver` sends, `ledger` and `events` keep the books, `report`
makes the table and the JSON, whose shape it documents.
"""
