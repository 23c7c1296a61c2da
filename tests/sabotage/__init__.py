"""Hostile cases by family: each must end in the right result or in an error that names the culprit.

`make sabotage` runs them all, and `python -m tests.sabotage --help` says how to run some.
"""

import os

# Read once, when torch and huggingface_hub are imported. A process that has threads cannot be forked safely.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
os.environ.update(HF_DATASETS_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")
os.environ["OMP_NUM_THREADS"] = "1"
