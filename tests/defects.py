"""Classes of defects that were found by hostile use, each with the test that fails where it is not mended.

`python -m tests.defects COMMIT` runs these tests against the package as it was at a commit, and says which fail there;
at the commit before a class was mended its test must. `tests/test_defects.py` holds the table to the tests there are.

So that a test fails there for its own reason, what it merely names may be missing: `LATER` stands in for it, and a test
that fails because it uses such a thing is "absent". Run directories that tests make are made as they were then.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]

BEFORE = "8d26302"  # the commit at which each of these failed
CLASSES: dict[str, dict[str, str]] = {
    "Positions and batches": {
        "a tensor with one axis (last_each) means the same positions in every row": (
            "tests/test_positions.py::test_what_cannot_be_meant_is_refused_everywhere[last_each]"
        ),
        "sites at each row's own positions (find_each) become sites in every row": (
            "tests/test_positions.py::test_what_can_be_meant_is_done_in_each_row[each row's own]"
        ),
        "a list of slices (image_spans) is no position": (
            "tests/test_positions.py::test_what_can_be_meant_is_done_in_each_row[a slice for each row]"
        ),
        "a sweep over ragged prompts patches other tokens than the ones named": (
            "tests/patching/test_sweep.py::test_named_positions_of_ragged_prompts_equal_the_single_runs"
        ),
        "a mask is read as positions 0 and 1": (
            "tests/test_positions.py::test_what_can_be_meant_is_done_in_each_row[a mask]"
        ),
        "True is position 1": "tests/test_positions.py::test_what_cannot_be_meant_is_refused_everywhere[a bool]",
        "1.7 is position 1": "tests/test_positions.py::test_what_cannot_be_meant_is_refused_everywhere[a float]",
        "an integer of numpy is refused without a name": (
            "tests/test_positions.py::test_what_can_be_meant_is_done_in_each_row[a numpy integer]"
        ),
        "a string is refused without a name": (
            "tests/test_positions.py::test_what_cannot_be_meant_is_refused_everywhere[a string]"
        ),
        "a hook at no position does nothing, silently": (
            "tests/test_positions.py::test_what_cannot_be_meant_is_refused_everywhere[nothing]"
        ),
        "positions for two rows are repeated over four": (
            "tests/test_positions.py::test_what_cannot_be_meant_is_refused_everywhere[positions of one row]"
        ),
        "clean and corrupt whose tokens stand elsewhere are swept": (
            "tests/patching/test_sweep.py::test_prompts_that_stand_elsewhere_in_their_rows_raise[real tokens-sweep]"
        ),
        "clean and corrupt whose image stands elsewhere are swept": (
            "tests/patching/test_sweep.py::test_prompts_that_stand_elsewhere_in_their_rows_raise[image tokens-sweep]"
        ),
        "a metric for two examples is repeated over four": (
            "tests/patching/test_metrics.py::test_what_was_made_for_other_examples_raises"
        ),
        "a source of two rows is repeated over four": "tests/test_hooks.py::test_what_cannot_be_done_raises[7]",
        "a span holds the text between two pieces of an image": (
            "tests/models/test_inputs.py::test_image_tokens_with_text_between_them_are_no_span"
        ),
        "logits that are NaN are measured": (
            "tests/patching/test_metrics.py::test_logits_that_are_not_finite_measure_nothing[nan]"
        ),
        "a metric by its name is called": "tests/patching/test_attribution.py::test_what_cannot_be_attributed_raises",
    },
    "Hooks, caches, threads": {
        "a hook gives back fewer rows, another dtype, no tensor, or resizes what it was given": (
            "tests/models/test_hook_results.py::test_a_hook_that_gives_back_something_else_raises_and_names_both"
        ),
        "the same, whichever way the hook was added": (
            "tests/models/test_hook_results.py::test_it_raises_whichever_way_the_hook_came"
        ),
        "the same, at any hook point": ("tests/models/test_hook_results.py::test_every_hook_point_refuses_fewer_rows"),
        "the same, in a view of one stack": ("tests/models/test_hook_results.py::test_a_view_refuses_it_too"),
        "a filter that matches only what the run never reaches does nothing, silently": (
            "tests/models/test_stop.py::test_a_filter_that_matches_only_what_a_run_never_reaches_raises"
        ),
        "a similarity passes over what was asked of its logits": (
            "tests/models/test_stop.py::test_a_similarity_refuses_what_is_asked_of_logits"
        ),
        "a backward hook gives back a gradient of another form": (
            "tests/models/test_hook_results.py::test_a_backward_hook_gives_back_a_gradient_of_the_same_form"
        ),
        "a pre-hook at a hook point does nothing": (
            "tests/models/test_hook_results.py::test_a_hook_point_takes_no_pre_hook"
        ),
        "the key cross_attn gives self-attention": (
            "tests/models/test_cache_keys.py::test_cross_attention_is_a_layer_type_of_every_activation_that_it_has"
        ),
        "results of cross-attention's heads are self-attention's": (
            "tests/models/test_cache_keys.py::test_head_results_of_cross_attention_sum_to_what_it_wrote"
        ),
        "a layer type that there is not is passed over": (
            "tests/models/test_cache_keys.py::test_a_layer_type_that_does_not_exist_raises"
        ),
        "a missing key does not say why": (
            "tests/models/test_cache_keys.py::test_a_missing_key_says_why_it_is_missing"
        ),
        "a slice of a cache refuses nothing": (
            "tests/models/test_cache_keys.py::test_a_slice_of_a_cache_keeps_its_keys"
        ),
        "another thread's run sees open hooks": (
            "tests/models/test_threads.py::test_an_open_context_is_not_seen_by_another_threads_run"
        ),
        "threads run within one another's runs": (
            "tests/models/test_threads.py::test_a_run_waits_for_the_run_of_another_thread"
        ),
        "threads share a tokenizer's padding": (
            "tests/models/test_threads.py::test_texts_are_read_by_one_thread_at_a_time"
        ),
        "a hook on a module of Hugging Face that is never called is silent": (
            "tests/models/test_foreign_hooks.py::test_a_hook_warns_where_the_run_does_not_call_its_module_and_nowhere_else"
        ),
        "train() means nothing": ("tests/models/test_foreign_hooks.py::test_training_mode_raises_or_changes_nothing"),
    },
    "Padding and windows": {
        "a sliding window counts padding while the model answers": (
            "tests/models/test_parity.py::test_a_sliding_window_counts_tokens_and_no_padding"
        ),
        "rotary frequencies of the longest row are every row's": (
            "tests/models/test_parity.py::test_rotary_positions_that_depend_on_length_are_each_rows_own"
        ),
        "a loss is asked of padding": ("tests/models/test_parity.py::test_no_loss_is_asked_of_padding"),
        "one of three activations at a hook point is patched": (
            "tests/test_every_way.py::test_a_hook_point_that_fires_several_times_is_no_site"
        ),
        "CI draws the same examples every time": (
            "tests/test_draws.py::test_a_run_in_ci_draws_anew_keeps_what_fails_and_is_repeated_by_its_seed"
        ),
        "a feature layer out of range is another layer": (
            "tests/models/test_feature_layers.py::test_the_layers_that_hugging_face_cannot_run_are_refused_and_no_others"
        ),
    },
    "Pictures, texts, tables": {
        "float and 32-bit TIFFs are black in data sets": (
            "tests/test_images.py::test_deep_tiffs_are_the_same_picture_for_a_model_and_for_a_data_set"
        ),
        "integers beyond 16 bits are clipped": (
            "tests/test_images.py::test_integers_beyond_16_bits_are_refused_by_name"
        ),
        "a directory or a dead link is no named error": ("tests/test_images.py::test_a_directory_is_named"),
        "a picture without pixels": ("tests/test_images.py::test_a_picture_without_pixels_is_refused"),
        "stray quotes, missing cells, encodings": (
            "tests/datasets/test_tables.py::test_a_damaged_table_of_pairs_is_refused_by_its_line"
        ),
        "columns named twice": ("tests/datasets/test_tables.py::test_a_table_of_pairs_has_each_column_once"),
        "a row is taken from one kind of table and refused in another; paths and links lead out of the folder": (
            "tests/datasets/test_rows.py::test_a_row_is_passed_over_for_the_same_reason_wherever_it_stands"
        ),
        "a question that cannot be seen": ("tests/models/test_text.py::test_a_question_that_cannot_be_seen_is_empty"),
        "a NUL or half a surrogate pair": (
            "tests/models/test_text.py::test_what_no_tokenizer_reads_is_refused_by_its_place"
        ),
        "a control token within a prompt": (
            "tests/models/test_text.py::test_a_control_token_in_a_prompt_is_refused_unless_it_is_allowed"
        ),
        "a prompt of 44 MB is tokenized": (
            "tests/models/test_text.py::test_a_prompt_beyond_the_context_is_refused_before_it_is_tokenized"
        ),
    },
    "Checkpoints": {
        "an index names a pickle": ("tests/models/test_checkpoint.py::test_an_index_that_names_a_pickle_is_refused"),
        "an index names a file outside": (
            "tests/models/test_checkpoint.py::test_an_index_that_names_a_file_outside_is_refused"
        ),
        "a link leads out of a checkpoint": (
            "tests/models/test_checkpoint.py::test_a_link_out_of_the_checkpoint_is_refused"
        ),
        "a config names weights of its own": (
            "tests/models/test_checkpoint.py::test_weights_named_by_the_config_are_safetensors_of_its_own"
        ),
        "a processor names a second model": (
            "tests/models/test_checkpoint.py::test_a_processor_that_names_a_second_model_is_refused"
        ),
        "a config names code": ("tests/models/test_checkpoint.py::test_a_kernel_that_a_config_names_is_refused"),
        "weights that are NaN answer": (
            "tests/models/test_checkpoint.py::test_a_weight_that_is_no_number_is_refused_by_name"
        ),
        "the zoo takes files that it did not ship": (
            "tests/zoo/test_zoo.py::test_a_file_that_was_not_shipped_is_refused"
        ),
    },
    "Run directories": {
        "a run directory that was harmed is believed": (
            "tests/notice/test_damage.py::test_every_file_that_is_harmed_is_made_again_or_named"
        ),
        "counts change after a file was deleted": (
            "tests/notice/test_damage.py::test_what_was_counted_is_counted_again"
        ),
        "a report is made of a damaged run": (
            "tests/notice/test_damage.py::test_a_report_and_a_comparison_of_a_harmed_run_name_the_file"
        ),
        "a comparison overwrites a file of a run": (
            "tests/notice/test_damage.py::test_a_comparison_takes_no_place_in_a_run"
        ),
        "a run goes on with another model": (
            "tests/notice/test_identity.py::test_another_model_is_refused_by_what_differs"
        ),
        "a run goes on with other packages": (
            "tests/notice/test_identity.py::test_other_packages_are_refused_by_name_and_accepted_on_demand"
        ),
        "a run goes on with other rows": ("tests/notice/test_identity.py::test_other_rows_are_refused_by_name"),
        "one deleted picture shifts every later row": (
            "tests/notice/test_identity.py::test_a_picture_deleted_from_a_folder_shifts_no_example"
        ),
        "a row is refused when everything is computed": (
            "tests/notice/test_identity.py::test_a_mask_of_another_size_is_left_out_and_its_row_is_named"
        ),
        "an option is refused when everything is computed": (
            "tests/notice/test_identity.py::test_every_option_is_checked_before_anything_is_made"
        ),
        "a truncated run.json has no way out": (
            "tests/notice/test_damage.py::test_a_run_json_that_is_cut_off_is_written_anew"
        ),
        "a file is written through a symbolic link": (
            "tests/notice/test_damage.py::test_a_run_writes_through_no_symbolic_link"
        ),
        "a file is moved before it is on the disk": (
            "tests/notice/test_damage.py::test_every_file_is_on_the_disk_before_it_is_moved"
        ),
        "a flipped bit is read": ("tests/notice/test_damage.py::test_one_bit_of_a_result_is_noticed"),
        "another run's file counts": ("tests/notice/test_damage.py::test_another_runs_results_do_not_count"),
        "one file an example": ("tests/notice/test_resume.py::test_a_block_is_a_file_and_not_an_example"),
    },
    "The report's word": {
        "a verdict differs from place to place": (
            "tests/notice/test_verdicts.py::test_every_place_gives_the_same_verdict"
        ),
        "what is not shown is told as refuted": (
            "tests/notice/test_verdicts.py::test_what_an_interval_spans_is_undecided_and_not_refuted"
        ),
        "50 of 50 are certain": ("tests/notice/test_intervals.py::test_fifty_of_fifty_are_not_certain"),
        "an interval is a point": ("tests/notice/test_intervals.py::test_no_interval_that_is_printed_is_a_point"),
        "headline and terminal do not say where heads were read": (
            "tests/notice/test_places.py::test_headline_and_terminal_name_where_heads_are_read_and_where_another_does_more"
        ),
        "0.00 for a head that is strong elsewhere": (
            "tests/notice/test_places.py::test_a_head_that_is_strong_elsewhere_stands_in_no_map_without_saying_where"
        ),
        "an effect without its place": ("tests/notice/test_places.py::test_no_effect_is_printed_without_its_place"),
        "a chart is blank on paper": (
            "tests/notice/report/test_print.py::test_charts_are_drawn_and_parts_unfolded_before_a_page_is_printed"
        ),
    },
    "The first hour": {
        "a block of the README does not run by itself": ("tests/test_readme.py::test_each_block_runs_by_itself"),
        "pictures that the README names are not there": (
            "tests/test_readme.py::test_the_models_that_ship_answer_the_question_about_the_pictures_that_ship"
        ),
        "m.nonsense() passes a type checker": ("tests/test_types.py::test_every_misspelled_name_is_an_error"),
        "a model prints as pages": ("tests/models/test_shown.py::test_everything_prints_as_a_screenful"),
        "text of a tokenizer is HTML in a notebook": (
            "tests/models/test_shown.py::test_what_a_tokenizer_says_is_escaped"
        ),
        "a stack that there is not is a KeyError": (
            "tests/models/test_names.py::test_a_stack_that_is_not_there_is_answered_with_those_that_are"
        ),
        "a misspelled attribute says nothing": (
            "tests/models/test_names.py::test_a_misspelled_attribute_is_answered_with_the_closest"
        ),
        "no tokenizer, to_single_str_token, b_U": (
            "tests/models/test_names.py::test_a_token_goes_to_its_string_and_back"
        ),
        "inputs.to(dtype)": ("tests/models/test_names.py::test_inputs_move_as_tensors_do"),
        "device and dtype know neither machine nor checkpoint": (
            "tests/models/test_placement.py::test_a_checkpoint_is_loaded_as_the_machine_says"
        ),
        "the command line does not say where a model runs": (
            "tests/notice/test_placement.py::test_the_command_line_says_where_the_model_runs_and_the_run_records_it"
        ),
    },
}


# What is appended to each module of a commit, so that a test which names what was not there yet is loaded there.
LATER = """

def __getattr__(name):
    from tests.defects import later
    return later(__name__, name)
"""
LONGEST = 60  # seconds that a test may take
_LATER = "was not there yet"
MOVED = {  # modules that had another name
    "hooked_vlm.images": "hooked_vlm.models.images",
    "hooked_vlm.analysis": "hooked_vlm.notice",
    "hooked_vlm.analysis.ablation": "hooked_vlm.notice.ablation",
    "hooked_vlm.analysis.answers": "hooked_vlm.notice.answers",
    "hooked_vlm.analysis.corruption": "hooked_vlm.notice.corruption",
    "hooked_vlm.analysis.head_labels": "hooked_vlm.notice.labels",
    "hooked_vlm.analysis.heads": "hooked_vlm.notice.vocabulary",
    "hooked_vlm.analysis.image_attention": "hooked_vlm.notice.functions",
    "hooked_vlm.analysis.lens": "hooked_vlm.lens",
    "hooked_vlm.analysis.statistics": "hooked_vlm.notice.statistics",
    "hooked_vlm.analysis.universal_heads": "hooked_vlm.notice.universal",
}

CONFTEST = "conftest.txt"  # where a commit's own is kept, for the test of how tests draw

# What is appended to a commit's own maker of run directories, of one file an example, for tests that change one.
MADE = """

def number_of(frame):
    return int(frame["example"].iloc[0].rpartition("-")[2])


def write_tables(path, kind, task, frames):
    for number, frame in frames.items():
        frame.to_parquet(path / kind / f"{task}-{number:06d}.parquet", compression="zstd")


def edit_tables(path, kind, task, change):
    frames = [pd.read_parquet(file) for file in sorted((path / kind).glob(f"{task}-*.parquet"))]
    write_tables(path, kind, task, {number_of(frame): change(frame) for frame in frames})
"""


class Later:
    """What a commit did not have yet: it may be named, and raises where it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **options: Any) -> NoReturn:
        raise NotImplementedError(f"{self._name} {_LATER}")

    def __getattr__(self, name: str) -> Any:
        return later(self._name, name)

    def __iter__(self) -> Iterator[Any]:
        self()


def later(module: str, name: str) -> Any:
    """A name that a module of a commit lacks; an error of the package as a class that nothing raises."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name.endswith("Error"):
        errors = importlib.import_module("hooked_vlm.errors")
        vars(errors).setdefault(name, type(name, (errors.HookedVLMError, ValueError), {}))
        return vars(errors)[name]
    return Later(f"{module}.{name}")


class _Modules(MetaPathFinder, Loader):
    """Finds the modules of the package that nobody else does."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.startswith("hooked_vlm.") else None

    def exec_module(self, module: ModuleType) -> None:
        name = MOVED.get(module.__name__)
        before = importlib.import_module(name) if name else None
        vars(module)["__getattr__"] = partial(getattr, before) if before else partial(later, module.__name__)


def pytest_configure() -> None:
    """As a plugin, in the copy: the modules that the commit lacks."""
    sys.meta_path.append(_Modules())


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """As a plugin, in the copy: of the tests, those of the table."""
    asked = {test for part in CLASSES.values() for test in part.values()}
    named = [item for item in items if {item.nodeid, item.nodeid.partition("[")[0]} & asked]
    config.hook.pytest_deselected(items=[item for item in items if item not in named])
    items[:] = named


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """As a plugin, in the copy: a test that hangs fails, such as one that reads a pipe."""

    def hung(*interrupted: Any) -> NoReturn:
        pytest.fail(f"it was not done in {LONGEST} s")  # no OSError, which a reader may take for its file's

    signal.signal(signal.SIGALRM, hung)
    signal.alarm(LONGEST)
    try:
        return (yield)
    finally:
        signal.alarm(0)


def outcomes(commit: str, tests: Sequence[str]) -> dict[str, str]:
    """What each test does with the package of a commit, in a copy of it with today's tests.

    Returns:
        By test: "passes", "fails", "absent" if it fails because it uses what was not there yet, or "no load".
    """
    with tempfile.TemporaryDirectory() as directory:
        there = Path(directory)
        _lay(commit, there)
        report = there / "report.xml"
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.defects", "--continue-on-collection-errors"),
            *(f"--junitxml={report}", "-o", "junit_family=xunit1"),
        ]
        files = sorted({test.partition("::")[0] for test in tests})
        subprocess.run([*command, *files], cwd=there, env=_environment(there), check=False)
        found: dict[str, str] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('file')}::{case.get('name')}"
            for test in {name, name.partition("[")[0]} & set(tests):  # of a test with cases, the clearest
                found[test] = min(found.get(test, "passes"), _outcome(case), key=_CLEAREST.index)
    return {test: found.get(test, "no load") for test in tests}


def _lay(commit: str, there: Path) -> None:
    """A commit, with today's tests in place of its own; what makes a run directory for them stays its own."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=there, input=archive, check=True)
    for module in (there / "hooked_vlm").rglob("*.py"):
        if module.name != "__init__.py":
            with module.open("a", encoding="utf-8") as code:
                code.write(LATER)
    own = [(there / "tests" / name).read_text(encoding="utf-8") for name in ("notice/made.py", "conftest.py")]
    shutil.rmtree(there / "tests")
    shutil.copytree(ROOT / "tests", there / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (there / "tests" / "notice" / "made.py").write_text(own[0] + MADE, encoding="utf-8")
    (there / CONFTEST).write_text(own[1], encoding="utf-8")


_CLEAREST = ("fails", "absent", "passes")


def _outcome(case: ElementTree.Element) -> str:
    said = [part for part in case if part.tag in ("failure", "error")]
    return "passes" if not said else "absent" if any(_LATER in part.get("message", "") for part in said) else "fails"


def _environment(there: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(there), "HF_HUB_OFFLINE": "1", "CONFTEST": str(there / CONFTEST)}


def main(commit: str = BEFORE) -> int:
    """Print each class and what its test says of a commit; 1 if one passes there, or cannot be loaded."""
    found = outcomes(commit, [test for part in CLASSES.values() for test in part.values()])
    for part, classes in CLASSES.items():
        print(f"\n{part}")
        for name, test in classes.items():
            print(f"  {found[test]:<8} {name}")
    failing = sum(outcome in ("fails", "absent") for outcome in found.values())
    print(f"\n{failing} of {len(found)} fail with the package of {commit}")
    return 0 if failing == len(found) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
