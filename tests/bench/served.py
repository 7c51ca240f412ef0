"""What uvicorn serves: the subject that the environment names."""

import asyncio
import os
from pathlib import Path

from subjects import Subject, build

app = asyncio.run(build(Subject.from_json(os.environ["BENCH_SUBJECT"]), Path(os.environ["BENCH_FOLDER"]))).app
