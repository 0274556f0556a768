"""YAML, overrides, rules: every shipped config loads, every fault names its key."""

import itertools

import pytest
from click.testing import CliRunner

from uniaudio.configs.cli import config as config_command
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.codec import CodecConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import dump_config, load_config, parse_yaml, shipped, validate
from uniaudio.configs.parallel import ParallelConfig
from uniaudio.configs.rules import wants_graphs
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in ("runs", "farms", "codecs") for name in shipped(kind)])
def test_every_shipped_config_loads_through_the_command_line(kind, name):
    result = CliRunner().invoke(config_command, [name, "--kind", kind], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.output


@pytest.mark.parametrize("name", shipped("runs"))
def test_dumped_run_reads_back_equal(name, tmp_path):
    run = load_config(RunConfig, name, folder="runs")
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(run))
    assert load_config(RunConfig, path, folder="runs") == run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.tasks=[tts, nope]", r"no config of that name in configs/tasks \| seen: nope \| allowed: .*tts"),
        ("data.tasks=[tts, tts]", r"data\.tasks names a task twice \| seen: tts, tts"),
        ("data.tasks=[mine.yaml]", r"no such config file \| seen: mine\.yaml"),
        ("model.vocabulary=nope", r"no config of that name in configs/vocabularies \| seen: nope \| allowed: .*paper"),
    ],
)
def test_tasks_and_vocabularies_that_a_run_names_are_looked_for(override, message):
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(config_command, ["demo_cpu", override], catch_exceptions=False)


def test_override_changes_one_value():
    run = load_config(RunConfig, "demo_cpu", folder="runs", overrides=["optim.lr=3e-4", "data.tasks=[tts]"])
    assert run.optim.lr == 3e-4
    assert run.data.tasks == ("tts",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"override optim\.lrr=1: unknown key optim\.lrr .*allowed: betas"),
        ("model.wdth=1", r"override model\.wdth=1: unknown key model\.wdth .*allowed: .*width"),
        ("optim.lr=-1", r"override optim\.lr=-1: optim\.lr: not a value of this key \| seen: -1 \| allowed: a number, above 0"),
        ("optim.lr=fast", r"override optim\.lr=fast: optim\.lr: .*seen: fast \| allowed: a number, above 0"),
        ("model.embedding=mean", r"override model\.embedding=mean: model\.embedding: .* \| seen: mean \| allowed: sum, concat"),
        ("parallel.tensor_parallel_size=3", r"tensor_parallel_size does not divide model\.num_heads \(4\) \| seen: 3 \| allowed: 1, 2, 4"),
        ("data.frames_per_row=4096", r"frames_per_row exceeds model\.max_positions \| seen: 4096 \| allowed: up to 1024"),
        ("train=5", r"override train=5: train: .*seen: 5"),
        ("optim.betas=[0.9,1.0]", r"optim\.betas: not a value of this key \| seen: .*1\.0"),
        ("optim.betas=[-1,0.9]", r"optim\.betas: not a value of this key \| seen: .*-1"),
        ("train.threads=100000", r"train\.threads: .*seen: 100000 \| allowed: a whole number, at least 1, at most 4096"),
        ("train.init_from=''", r"train\.init_from: .*seen: empty text \| allowed: text, not empty or null"),
        ("train.experiment=''", r"train\.experiment: .*seen: empty text \| allowed: text, not empty "),
        ("steps", r"section\.key=value \| seen: steps"),
        ("model.num_heads=7", r"num_heads does not divide model\.width"),
        ("model.local_num_heads=64", r"model\.local_num_heads: the width of a head is no multiple of 8 \| seen: 128 / 64 = 2"),
    ],
)
def test_a_fault_names_key_value_and_what_is_allowed(override, message):
    with pytest.raises(UserError, match=message):
        load_config(RunConfig, "demo_cpu", folder="runs", overrides=[override])


def test_a_fault_of_the_file_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("manifest: m\noutput_dir: o\ntokenizers: {audio: {name: codec}}\nclips_per_unit: none\n")
    with pytest.raises(UserError, match=r"mine\.yaml: clips_per_unit: .*seen: none"):
        load_config(FarmConfig, path, folder="farms", overrides=["seed=1"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.fine_ratio=3", "train.lr=0.1"], r"^override model\.fine_ratio=3: model: hop 320 must be a multiple of fine_ratio 3"),
        (["train.levels=[0]"], r"^override train\.levels=\[0\]: train: levels must list numbers from 1 on, seen \[0\]"),
        (["model.num_codebooks=2", "train.levels=[3]"], r"^override model\.num_codebooks=2 train\.levels=\[3\]: train\.levels must lie"),
        (
            ["train.init_from=null", "train.decoder_only=true"],
            r"^override train\.init_from=null train\.decoder_only=true: train: deco",
        ),
        (["model.kernel_size=4"], r"^override model\.kernel_size=4: model: kernel_size must be odd, seen 4"),
        (["train.lr=fast"], r"^override train\.lr=fast: train\.lr: not a value of this key"),
    ],
)
def test_a_rule_of_a_codec_s_section_names_the_override_that_breaks_it(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(CodecConfig, "universal_16khz", folder="codecs", overrides=overrides)


def test_a_rule_that_names_no_override_names_the_file_with_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("kind: kubernetes\n")
    with pytest.raises(UserError, match=r"^.*mine\.yaml with check_paths=false: kind kubernetes needs environment\.container"):
        load_config(ClusterConfig, path, folder="clusters", overrides=["check_paths=false"])


def test_zero_2_under_a_pipeline_is_refused():
    with pytest.raises(UserError, match=r"zero_stage under a pipeline \| seen: 2 \| allowed: 0, 1"):
        load_config(RunConfig, "demo_cpu", folder="runs", overrides=["parallel.zero_stage=2", "parallel.pipeline_parallel_size=2"])


def test_prefix_lm_with_a_loss_on_conditions_is_refused():
    with pytest.raises(UserError, match=r"model\.prefix_lm with data\.loss_on all.*remedy: set data\.loss_on=target"):
        load_config(RunConfig, "demo_cpu", folder="runs", overrides=["model.prefix_lm=true", "data.loss_on=all"])


def test_key_given_twice_is_refused():
    with pytest.raises(UserError, match=r"x\.yaml: line 1: key given twice \| seen: a"):
        parse_yaml("a: 1\na: 2\n", source="x.yaml")


def test_broken_yaml_names_its_source():
    with pytest.raises(UserError, match="x.yaml: not valid YAML"):
        parse_yaml("a: [1", source="x.yaml")


@pytest.mark.parametrize(("kind", "key"), [(RunConfig, "train"), (RunConfig, "data"), (FarmConfig, None), (CodecConfig, "train")])
def test_every_seed_has_the_largest_that_all_generators_take(kind, key):
    name, folder = {RunConfig: ("demo_cpu", "runs"), FarmConfig: ("demo", "farms"), CodecConfig: ("tiny_cpu", "codecs")}[kind]
    place = f"{key}.seed" if key else "seed"
    load_config(kind, name, folder=folder, overrides=[f"{place}={2**63 - 1}"])
    with pytest.raises(UserError, match=rf"{place}: not a value of this key .* at most {2**63 - 1}"):
        load_config(kind, name, folder=folder, overrides=[f"{place}={2**63}"])


@pytest.mark.parametrize(("given", "meant"), [("base.yml", "base.yaml"), ("bsae.yaml", "base.yaml"), ("other.yml", None)])
def test_a_file_that_is_not_there_is_told_with_the_nearest_beside_it(given, meant, tmp_path, monkeypatch):
    (tmp_path / "base.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    for path in (given, str(tmp_path / given)):
        with pytest.raises(UserError, match="no such config file") as told:
            load_config(RunConfig, path, folder="runs")
        assert ("did you mean " in str(told.value)) == (meant is not None)
        assert meant is None or f"did you mean {path.replace(given, meant)}?" in str(told.value)


def test_missing_file_and_unknown_name_are_refused():
    with pytest.raises(UserError, match="no such config file"):
        load_config(RunConfig, "nowhere.yaml", folder="runs")
    with pytest.raises(UserError, match="allowed: .*paper_1b"):
        load_config(RunConfig, "papr_1b", folder="runs")


def test_missing_key_is_named():
    with pytest.raises(UserError, match=r"farm: manifest is missing \| allowed: text"):
        validate(FarmConfig, {"output_dir": "x", "tokenizers": {"audio": {"name": "codec"}}}, source="farm")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"tokenisers": {"audio": {"name": "codec"}}},
            r"unknown key tokenisers \(and 1 more\) \| allowed: .* \| remedy: did you mean tokenizers\?",
        ),
        (
            {"tokenizers": {"audio": {"name": "codec", "levels": 3}}},
            r"unknown key tokenizers\.audio\.levels \| seen: 3 \| allowed: name, options",
        ),
        ({"tokenizers": {"audio": "codec"}}, r"tokenizers\.audio: not .* \| seen: codec \| allowed: a mapping of name, options"),
        ({"tokenizers": {}, "filters": {"min_second": 1}}, r"unknown key filters\.min_second .*did you mean min_seconds\?"),
    ],
)
def test_a_misspelt_key_is_told_with_those_there_are(tree, message):
    with pytest.raises(UserError, match=message):
        validate(FarmConfig, {"manifest": "m", "output_dir": "x"} | tree, source="farm")


def test_an_optimizer_on_the_host_needs_zero_2_or_3():
    with pytest.raises(UserError, match=r"offload_optimizer needs .* \| seen: parallel\.zero_stage 1 \| allowed: 2, 3"):
        load_config(RunConfig, "paper_1b", folder="runs", overrides=["parallel.offload_optimizer=true"])


def test_fp8_without_what_it_needs_is_refused():
    base = ["train.fp8=true", "parallel.zero_stage=1", "parallel.tensor_parallel_size=1"]
    load_config(RunConfig, "demo_cpu", folder="runs", overrides=[*base, "train.precision=bf16"])
    for wrong in ("train.precision=fp32", "parallel.tensor_parallel_size=2", "model.ffn_width=520"):
        with pytest.raises(UserError, match=r"train\.fp8 needs bf16 around it.*seen: train\.precision"):
            load_config(RunConfig, "demo_cpu", folder="runs", overrides=[*base, "train.precision=bf16", wrong])


def test_cuda_graphs_are_refused_where_they_cannot_be():
    base = ["train.cuda_graphs=true", "parallel.zero_stage=1", "train.precision=bf16", "train.device=cuda", "model.kernels=auto"]
    base += ["parallel.tensor_parallel_size=1"]
    wrong = ["train.precision=fp32", "parallel.zero_stage=2"]
    wrong += ["model.kernels=torch", "model.attention=torch_varlen", "train.device=cpu", "model.structure=parallel model.local_layers=0"]
    cases = ((1, "auto", True), (2, "auto", True), (1, "true", True), (2, "true", True), (1, "false", False))
    for (tensor, wanted, chosen), stages in itertools.product(cases, (1, 2)):
        words = [*base, f"parallel.tensor_parallel_size={tensor}", f"train.cuda_graphs={wanted}"]
        words += [f"parallel.pipeline_parallel_size={stages}"]
        assert wants_graphs(load_config(RunConfig, "demo_cpu", folder="runs", overrides=words)) is chosen
    for override in wrong:
        with pytest.raises(UserError, match=r"train\.cuda_graphs works with bf16 under ZeRO-1.*seen: train\.precision .*cuda_graphs=auto"):
            load_config(RunConfig, "demo_cpu", folder="runs", overrides=[*base, *override.split()])
        chosen = load_config(RunConfig, "demo_cpu", folder="runs", overrides=[*base, *override.split(), "train.cuda_graphs=auto"])
        assert not wants_graphs(chosen)
    with pytest.raises(UserError, match=r"train\.cuda_graphs: not .*seen: never \| allowed: auto, true, false"):
        load_config(RunConfig, "demo_cpu", folder="runs", overrides=[*base, "train.cuda_graphs=never"])


def test_tensor_parallelism_needs_frames_that_divide():
    words = ["parallel.tensor_parallel_size=2", "data.frames_per_row=511", "data.rows_per_micro_batch=1"]
    with pytest.raises(UserError, match=r"size does not divide the frames of a micro-batch \(511\) \| seen: 2 \| allowed: 1, 7, 73"):
        load_config(RunConfig, "demo_cpu", folder="runs", overrides=words)


def test_a_config_of_before_may_name_the_tokens_cut_over_tensor_parallel_ranks():
    """Checkpoints hold the whole config that they were made with."""
    assert ParallelConfig.model_validate({"sequence_parallel": True, "zero_stage": 1}) == ParallelConfig(zero_stage=1)
