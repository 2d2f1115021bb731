"""Configurations: what may be written, what is said of a mistake, and the changes that the command line makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from attnbench import configs
from attnbench.harness.config import (
    ConfigError,
    ConfigFileError,
    LoadedConfig,
    SweepConfig,
    config_schema,
    load_config,
    load_stored,
    shipped_names,
)
from attnbench.harness.config.fields import Pair
from attnbench.harness.config.shipped import read_source
from attnbench.impls import CAUSAL, FULL, BrokenImplementationError, registry

CONFIGS = Path(str(configs.__file__)).parent
SHIPPED = (
    "chunked_vs_sdpa", "ci", "cpu", "decode", "default", "gpu", "gpu_check", "gqa", "long_context", "papers/rabe_staats_2021",
    "papers/rabe_staats_2021_memory", "prove", "quick",
)  # fmt: skip
#: The example of the documentation.
EXAMPLE = """\
name: quick
device: auto                     # auto | cpu | cuda | cuda:N
implementations: [naive, sdpa, sdpa_flash, {name: xformers, operator: cutlass}]
sweeps:                          # each is a cartesian product; a scalar is a list of one
  - {batch: 1, heads: [4, 8], seq_len: [256, 512, 1024], head_dim: 64, dtype: [float32, bfloat16],
     mask: [full, causal], pass: [forward, forward_backward]}
  - {batch: 8, heads: 32/8, seq_len: 1/4096, head_dim: 128, dtype: bfloat16, mask: causal, pass: forward}
exclude:
  - {implementation: naive, seq_len: ">4096"}
protocol: {launches: 3, min_time_s: 0.05, max_time_s: 0.5, precision: 1e-2, timeout_s: 60, seed: 0, threads: all}
"""
SMALL = "name: small\nimplementations: naive\nsweeps: {heads: 4, seq_len: 256, head_dim: 64}\n"
SWEEP_KEYS = (
    "batch, total_tokens, heads, hidden, seq_len, head_dim, dtype, mask, pass, cache, cuda_graph, allocator, "
    "implementations"
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path for `sweep.yaml` in the current folder, so that messages are short."""
    monkeypatch.chdir(tmp_path)
    return Path("sweep.yaml")


def load(file: Path, text: str, *settings: str, only: tuple[str, ...] = (), tolerate: bool = False) -> LoadedConfig:
    """The configuration of a text."""
    file.write_text(text)
    return load_config(str(file), overrides=settings, only=only, tolerate_unknown=tolerate)


def refusal(file: Path, text: str, *settings: str, only: tuple[str, ...] = ()) -> str:
    """The message of the error that loading the text must end in."""
    with pytest.raises(ConfigError) as caught:
        load(file, text, *settings, only=only)
    return str(caught.value)


def test_example(file: Path) -> None:
    """The documentation's example means what it says."""
    config = load(file, EXAMPLE).config
    first, second = config.sweeps
    assert [entry.name for entry in config.implementations] == ["naive", "sdpa", "sdpa_flash", "xformers"]
    assert config.implementations[3].options == {"operator": "cutlass"}
    assert (first.heads, first.mask) == ((Pair(4, 4), Pair(8, 8)), (FULL, CAUSAL))
    assert first.passes == ("forward", "forward_backward")
    assert (second.heads, second.seq_len) == ((Pair(32, 8),), (Pair(1, 4096),))
    assert config.protocol.precision == 0.01
    assert str(config.exclude[0]) == "{implementation: naive, seq_len: >4096}"


def test_defaults(file: Path) -> None:
    """What is left out has the documented default."""
    config = load(file, SMALL).config
    sweep, protocol = config.sweeps[0], config.protocol
    assert (sweep.batch, sweep.dtype, sweep.mask, sweep.passes) == (None, ("float32",), (FULL,), ("forward",))
    assert (sweep.cache, sweep.cuda_graph, sweep.implementations) == (("warm",), (False,), None)
    assert (config.device, config.exclude) == ("auto", ())
    assert (protocol.launches, protocol.min_time_s, protocol.max_time_s, protocol.precision) == (3, 0.05, 0.5, 0.01)
    assert (protocol.timeout_s, protocol.seed, protocol.threads) == (60, 0, "all")
    assert (protocol.allocator, protocol.float32, protocol.measure) == ("steady", "ieee", ("time", "memory"))


def test_loaded(file: Path) -> None:
    """What a run stores is the text as written, the data as checked, and the changes in words."""
    loaded = load(file, SMALL, "protocol.launches=5", only=("sdpa",))
    assert (loaded.source, loaded.text) == ("sweep.yaml", SMALL)
    assert loaded.overrides == ("--set protocol.launches=5", "--only sdpa")
    assert loaded.data["protocol"] == {"launches": 5}
    assert load_stored(json.loads(json.dumps(loaded.data))).model_dump() == loaded.config.model_dump()


def test_windows_lines_and_unicode(file: Path) -> None:
    """Line ends of other systems and comments in any language do no harm."""
    file.write_bytes(SMALL.replace("\n", "\r\n").encode() + "# größer\r\n".encode())
    assert load_config(str(file)).config.name == "small"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "heads: 4",
            "heads: 4, seqlen: 3",
            f"sweep.yaml:3: sweeps.seqlen: unknown key 'seqlen'; allowed: {SWEEP_KEYS}; did you mean 'seq_len'?",
        ),
        (
            "name: small",
            "name: small\ndevise: cpu",
            (
                "sweep.yaml:2: devise: unknown key 'devise'; allowed: name, device, implementations, sweeps, exclude, "
                "protocol, goals, published; did you mean 'device'?"
            ),
        ),
        (
            "name: small",
            "name: small\nlaunches: 3",
            (
                "sweep.yaml:2: launches: unknown key 'launches'; allowed: name, device, implementations, sweeps, "
                "exclude, protocol, goals, published; it belongs under protocol"
            ),
        ),
        ("name: small\n", "", "sweep.yaml:1: name: this key must be given"),
        (
            "name: small",
            "name: a/b",
            (
                "sweep.yaml:1: name: 'a/b' is given; "
                "allowed: letters, digits, '.', '_' and '-', at most 64, since it names a folder"
            ),
        ),
        (
            "name: small",
            "name: small\ndevice: gpu",
            "sweep.yaml:2: device: 'gpu' is given; allowed: auto, cpu, cuda, cuda:N; did you mean 'cpu'?",
        ),
        (
            "heads: 4",
            "heads: four",
            (
                "sweep.yaml:3: sweeps.heads: 'four' is given; "
                "allowed: a whole number from 1, or a pair query/kv such as 32/8, query a multiple of kv"
            ),
        ),
        (
            "heads: 4",
            "heads: [4, 32/5]",
            (
                "sweep.yaml:3: sweeps.heads.1: '32/5' is given; "
                "allowed: a whole number from 1, or a pair query/kv such as 32/8, query a multiple of kv"
            ),
        ),
        (
            "seq_len: 256",
            "seq_len: [256, 1/x]",
            (
                "sweep.yaml:3: sweeps.seq_len.1: '1/x' is given; "
                "allowed: a whole number from 1, or a pair query/kv such as 1/4096"
            ),
        ),
        ("heads: 4", "heads: []", "sweep.yaml:3: sweeps.heads: an empty list; allowed: at least one entry"),
        (
            "head_dim: 64",
            "head_dim: true",
            "sweep.yaml:3: sweeps.head_dim: true is given; allowed: a whole number from 1 to 2147483647",
        ),
        (
            "head_dim: 64",
            "head_dim: 64, dtype: float23",
            (
                "sweep.yaml:3: sweeps.dtype: 'float23' is given; "
                "allowed: float32, bfloat16, float16; did you mean 'float32'?"
            ),
        ),
        (
            "head_dim: 64",
            "head_dim: 64, mask: {sliding_window: [8, 0]}",
            'sweep.yaml:3: sweeps.mask: {"sliding_window": [8, 0]} is given; allowed: full, causal',
        ),
        (
            "head_dim: 64",
            "head_dim: 64, cuda_graph: yes",
            "sweep.yaml:3: sweeps.cuda_graph: 'yes' is given; allowed: true or false",
        ),
        (
            "heads: 4",
            "heads: 4, hidden: 256",
            "sweep.yaml:3: sweeps: heads and hidden are both given; allowed: one of them",
        ),
        ("heads: 4, ", "", "sweep.yaml:3: sweeps: heads must be given, or hidden (heads = hidden / head_dim)"),
        (
            "seq_len: 256",
            "total_tokens: 4096, seq_len: 1/256",
            "sweep.yaml:3: sweeps: total_tokens is given with seq_len 1/256; a pair needs batch instead",
        ),
        (
            "naive",
            "sdpa_flahs",
            "sweep.yaml:2: implementations: unknown implementation 'sdpa_flahs'; did you mean 'sdpa_flash'?",
        ),
        (
            "naive",
            "{name: xformers, operater: cutlass}",
            "sweep.yaml:2: implementations: xformers has no option 'operater'; did you mean 'operator'?",
        ),
        (
            "naive",
            "{name: xformers, operator: [a]}",
            "sweep.yaml:2: implementations: option 'operator' is [\"a\"]; allowed: a string, a number, true or false",
        ),
        (
            "naive",
            "[naive, 5]",
            (
                "sweep.yaml:2: implementations.1: 5 is given; "
                "allowed: the name of an implementation, or {name: ..., option: value}"
            ),
        ),
        (
            "implementations: naive\n",
            "",
            "sweep.yaml:1: implementations must be given: sweeps 0 name none of their own",
        ),
        (
            "implementations: naive\n",
            "implementations: naive\nexclude: {}\n",
            "sweep.yaml:3: exclude: an entry without keys would leave out every cell; name at least one key",
        ),
        (
            "implementations: naive\n",
            "implementations: naive\nexclude: {head_dim: '=>64'}\n",
            (
                "sweep.yaml:3: exclude.head_dim: '=>64' is given; "
                "allowed: a whole number from 1 to 2147483647, or a comparison such as '>4096'"
            ),
        ),
        (
            "implementations: naive\n",
            "implementations: naive\nprotocol: {launches: three}\n",
            "sweep.yaml:3: protocol.launches: 'three' is given; allowed: a whole number from 1 to 1000",
        ),
        (
            "implementations: naive\n",
            "implementations: naive\nprotocol: {precision: 1}\n",
            "sweep.yaml:3: protocol.precision: 1 is given; allowed: a number above 0 and at most 0.5",
        ),
        (
            "implementations: naive\n",
            "implementations: naive\nprotocol: {min_time_s: 1}\n",
            "sweep.yaml:3: protocol: min_time_s 1 is above max_time_s 0.5; lower the former",
        ),
        (
            "implementations: naive\n",
            "implementations: naive\nprotocol: {threads: al}\n",
            (
                "sweep.yaml:3: protocol.threads: 'al' is given; "
                "allowed: all, or a whole number from 1 to 4096; did you mean 'all'?"
            ),
        ),
        (
            "implementations: naive\n",
            "implementations: naive\nprotocol: fast\n",
            (
                "sweep.yaml:3: protocol: 'fast' is no mapping; allowed: a mapping with the keys launches, min_time_s, "
                "max_time_s, precision, timeout_s, seed, threads, allocator, float32, measure"
            ),
        ),
        (
            "implementations: naive\n",
            "implementations: naive\nname: again\n",
            "sweep.yaml:3: name: the key is given twice, first in line 1; remove one of them",
        ),
    ],
)
def test_messages(file: Path, old: str, new: str, message: str) -> None:
    """A mistake is told with its line, its key, what was given, what is allowed and a near match."""
    assert old in SMALL
    found = refusal(file, SMALL.replace(old, new))
    assert found.startswith(message)
    assert len(found.splitlines()) == 1
    if "implementation '" not in found and "option '" not in found:
        assert found == message


def test_all_mistakes_at_once(file: Path) -> None:
    """All mistakes of a file are told in the order of its lines."""
    text = "name: x\nimplementations: [nave, sdpa]\nsweeps:\n- {heads: 0, seq_len: 1/0}\nprotocol:\n  seed: -1\n"
    places = [line.split(": ")[:2] for line in refusal(file, text).splitlines()]
    assert places == [
        ["sweep.yaml:2", "implementations.0"],
        ["sweep.yaml:4", "sweeps.0.heads"],
        ["sweep.yaml:4", "sweeps.0.seq_len"],
        ["sweep.yaml:4", "sweeps.0.head_dim"],
        ["sweep.yaml:6", "protocol.seed"],
    ]


def test_many_mistakes_are_counted(file: Path) -> None:
    """A message stays readable however many mistakes there are."""
    lines = refusal(file, SMALL.replace("seq_len: 256", f"seq_len: [{', '.join('x' * 50)}]")).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 30 more"


def test_control_characters(file: Path) -> None:
    """A key cannot break the lines of a message or reach the terminal."""
    found = refusal(file, SMALL + 'protocol: {"a\\r\\e[31m": 1}\n')
    assert found.startswith(r"sweep.yaml:4: protocol.'a\r\x1b[31m': unknown key 'a\r\x1b[31m'; allowed: launches")


def test_no_jargon(file: Path) -> None:
    """No message sends its reader to the validation library."""
    found = refusal(file, "name: 1\nsweeps: [1, {batch: {}}]\nexclude: [[]]\nprotocol: []\nx: 1\n")
    assert not any(word in found.lower() for word in ("pydantic", "http", "input should", "type=", "extra"))


def test_unknown_implementation_tolerated(file: Path) -> None:
    """Where a plugin failed to import, names that it may have brought stay in place, in sweeps and exclusions."""
    text = SMALL.replace("naive", "mine") + "exclude: {implementation: mine, seq_len: 1}\n"
    assert "unknown implementation 'mine'" in refusal(file, text)
    config = load(file, text, tolerate=True).config
    assert config.implementations[0].name == "mine"
    assert load_stored(yaml.safe_load(text), tolerate_unknown=True).implementations == config.implementations


def test_broken_implementation_stays(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An implementation whose import failed is no mistake of the configuration: its cells will say so."""
    monkeypatch.setitem(registry._broken, "shattered", "no such file")
    with pytest.raises(BrokenImplementationError):
        registry.get("shattered")
    assert load(file, SMALL.replace("naive", "shattered")).config.implementations[0].name == "shattered"


def test_stored_mistake() -> None:
    """A stored configuration that is damaged is told by its key path."""
    with pytest.raises(ConfigError, match=r"^run\.json: sweeps: this key must be given$"):
        load_stored({"name": "x", "implementations": ["naive"]})


def test_settings(file: Path) -> None:
    """`--set` reaches into mappings and lists, makes sections, replaces and removes."""
    config = load(file, EXAMPLE, "sweeps.1.seq_len=[128, 1/256]", "protocol={seed: 7}", "protocol.launches=5").config
    assert config.sweeps[1].seq_len == (Pair(128, 128), Pair(1, 256))
    assert (config.protocol.seed, config.protocol.launches, config.protocol.precision) == (7, 5, 0.01)
    config = load(file, EXAMPLE, "sweeps.0.batch=", "sweeps.0.total_tokens=4096", "exclude=[]").config
    assert (config.sweeps[0].batch, config.sweeps[0].total_tokens, config.exclude) == (None, (4096,), ())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "protocol.launches=x",
            "--set protocol.launches=x: protocol.launches: 'x' is given; allowed: a whole number from 1 to 1000",
        ),
        (
            "protocol.launchs=3",
            (
                "--set protocol.launchs=3: protocol.launchs: unknown key 'launchs'; allowed: launches, min_time_s, "
                "max_time_s, precision, timeout_s, seed, threads, allocator, float32, measure; did you mean 'launches'?"
            ),
        ),
        (
            "launches",
            "--set launches: not of the form KEY=VALUE; write such as --set protocol.launches=5",
        ),
        ("=5", "--set =5: not of the form KEY=VALUE; write such as --set protocol.launches=5"),
        (
            "sweeps.2.batch=1",
            "--set sweeps.2.batch=1: '2' is given for an entry of sweeps; allowed: an index from 0 to 1",
        ),
        (
            "sweeps.batch=1",
            "--set sweeps.batch=1: 'batch' is given for an entry of sweeps; allowed: an index from 0 to 1",
        ),
        ("name.x=1", "--set name.x=1: name is 'quick' and has no 'x'; set name itself"),
        (
            "device=[",
            (
                "--set device=[: not valid YAML: while parsing a flow node, expected the node content, "
                "but found '<stream end>'; check indentation, brackets and quotes"
            ),
        ),
        (
            "device=!!binary x",
            "--set device=!!binary x: the tag '!!binary' is not supported; allowed: values without a tag",
        ),
    ],
)
def test_setting_messages(file: Path, setting: str, message: str) -> None:
    """A mistake in `--set` names the argument, not a line of the file."""
    assert refusal(file, EXAMPLE, setting) == message


def test_only(file: Path) -> None:
    """`--only` sets the implementations everywhere, keeps configured options, and takes names that are new."""
    text = EXAMPLE.replace("pass: forward}", "pass: forward, implementations: [chunked]}")
    config = load(file, text, only=("chunked", "xformers")).config
    assert [entry.name for entry in config.implementations] == ["chunked", "xformers"]
    assert config.implementations[1].options == {"operator": "cutlass"}
    assert config.sweeps[0].implementations is None
    assert config.sweeps[1].implementations == config.implementations
    message = refusal(file, text, only=("sdpa", "nave"))
    assert message.startswith("--only sdpa,nave: implementations.1: unknown implementation 'nave'; did you mean")


def test_unknown_name() -> None:
    """A name that is neither shipped nor a file is told with the shipped names and a near match."""
    with pytest.raises(ConfigError) as caught:
        load_config("quik")
    assert not isinstance(caught.value, ConfigFileError)
    assert str(caught.value) == (
        "unknown configuration 'quik'; allowed: the path of a YAML file, or "
        f"{', '.join(SHIPPED)}; did you mean 'quick'?"
    )


@pytest.mark.parametrize("source", ["missing.yaml", ".", "a\x00b.yaml", "x" * 5000 + ".yaml"])
def test_unreadable(file: Path, source: str) -> None:
    """A file that cannot be read is an error of its own kind, which says why."""
    assert not file.exists()
    with pytest.raises(ConfigFileError, match="cannot read"):
        load_config(source)


def test_endless_file() -> None:
    """A file without an end is read no further than a configuration can be long."""
    with pytest.raises(ConfigError, match="larger than"):
        load_config("/dev/zero")


def test_shipped_names() -> None:
    """The shipped configurations are found as package data."""
    assert shipped_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped(name: str) -> None:
    """A shipped configuration loads, has its own name, fits the JSON Schema and names it for editors."""
    loaded = load_config(name)
    folder, _, own_name = name.rpartition("/")
    assert loaded.config.name == own_name
    jsonschema.validate(loaded.data, config_schema())
    schema_line, comment, *_ = loaded.text.splitlines()
    assert schema_line == f"# yaml-language-server: $schema={'../' if folder else ''}schema.json"
    assert comment.startswith("# ")


def test_quick_covers() -> None:
    """`quick` has every CPU-capable implementation and every value that a first look should show."""
    config = load_config("quick").config
    names = {entry.name for sweep in config.sweeps for entry in sweep.implementations or config.implementations}
    assert names == {"naive", "sdpa", "sdpa_math", "sdpa_flash", "flex_attention", "chunked"}
    assert {each for sweep in config.sweeps for each in sweep.passes} == {"forward", "backward", "forward_backward"}
    assert {str(each) for sweep in config.sweeps for each in sweep.mask} == {"full", "causal"}
    assert len({each for sweep in config.sweeps for each in sweep.seq_len}) >= 3
    assert len({each for sweep in config.sweeps for each in sweep.heads or ()}) >= 2
    assert len({each for sweep in config.sweeps for each in sweep.dtype}) >= 2
    assert load_config("ci").config.protocol.launches == 8


def test_schema_is_current() -> None:
    """`configs/schema.json` is what `attnbench schema` prints."""
    assert (CONFIGS / "schema.json").read_text() == json.dumps(config_schema(), indent=2) + "\n"


def test_schema_describes_every_key() -> None:
    """Every key has words for editors to show, and none is titled or null without need."""
    schema = config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for model in (schema, *(schema["$defs"][name] for name in ("Sweep", "Exclude", "Protocol"))):
        for key, value in model["properties"].items():
            assert value.get("description"), key
            assert "title" not in value
            assert value.get("default", "") is not None


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (EXAMPLE, True),
        (SMALL, True),
        (SMALL.replace("heads: 4", "heads: 32/8"), True),
        (SMALL.replace("heads: 4", "heads: x/8"), False),
        (SMALL + "exclude: {seq_len: ['>4096', 1/8]}\n", True),
        (SMALL + "exclude: {seq_len: '=>4096'}\n", False),
        (SMALL + "protocol: {threads: 4, measure: time}\n", True),
        (SMALL + "protocol: {threads: many}\n", False),
        (SMALL.replace("naive", "[{name: chunked, query_block: 64}, some_plugin]"), True),
        (SMALL.replace("seq_len", "seqlen"), False),
        (SMALL + "protocol: {launchs: 3}\n", False),
    ],
)
def test_schema_agrees(text: str, fits: bool) -> None:
    """The JSON Schema takes the short forms that the loader takes, and marks what it does not."""
    validator = jsonschema.Draft202012Validator(config_schema())
    assert validator.is_valid(yaml.safe_load(text.replace("1e-2", "0.01"))) is fits


def test_frozen(file: Path) -> None:
    """A configuration cannot be changed once it is checked."""
    config: SweepConfig = load(file, SMALL).config
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"  # type: ignore[misc]


def test_read_source_names_the_file() -> None:
    """Messages about a shipped configuration name its file."""
    assert read_source("quick")[1] == "quick.yaml"


def test_no_torch() -> None:
    """Configurations and plans need no torch, and so start at once."""
    code = "import sys, attnbench.harness.config, attnbench.harness.plan; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
