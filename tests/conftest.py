"""What holds in every test: no network, one thread a process, draws that can be repeated."""

import os

# Before anything imports torch or huggingface_hub, which read these once.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
# The models are tiny, and workers share the cores: with two threads each, on busy cores, threads that wait for one
# another made a forward of 2 ms take 700.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

collect_ignore_glob = ["benchmarks/bench_*.py"]

settings.register_profile("default", max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("repeatable" if os.environ.get("CI") else "default")
