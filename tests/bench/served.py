"""What uvicorn serves: the subject that the environment names."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from subjects import Subject, build

with ThreadPoolExecutor(1) as thread:
    # uvicorn may import this inside of its event loop.
    subject = Subject.from_json(os.environ["BENCH_SUBJECT"])
    app = thread.submit(asyncio.run, build(subject, Path(os.environ["BENCH_FOLDER"]))).result().app
