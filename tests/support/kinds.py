"""The kinds of brokers that tests run over; imports nothing that would choose a reactor."""

import os

KINDS = ["memory", "valkey", "redis"]
if os.environ.get("PELOTON_TEST_REACTOR", "peloton") == "peloton":
    KINDS += ["sentinel", "cluster"]  # on other reactors they would tell nothing new
