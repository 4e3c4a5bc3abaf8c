import tomllib
from pathlib import Path

import pytest

from common.config import Config, changed, load_config, parse_overrides
from common.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return path


def test_all_problems_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, 'seed = -1\n[train]\nlr = 0\nlocal-epochs = "two"\n')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(caught.value.problems) == 3
    text = str(caught.value)
    assert str(path) in text
    for key in ("seed=-1", "train.lr=0", "train.local-epochs='two'"):
        assert key in text


def test_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.lcoal-epochs, did you mean train\.local-epochs"):
        load_config(write(tmp_path, "[train]\nlcoal-epochs = 1\n"))


def test_snake_case_keys_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean train\.local-epochs"):
        load_config(write(tmp_path, "[train]\nlocal_epochs = 1\n"))


@pytest.mark.parametrize(
    "text",
    [
        "[train]\nlr = nan\n",
        "[train]\nmomentum = 1.0\n",
        "[train]\nrounds = 0\n",
        "[train]\nrounds = 1.5\n",
        "[partition]\nscheme = 'random'\n",
        "[partition]\nnum-clients = 5\n[train]\nclients-per-round = 6\n",
        "[backbone]\narch = 'resnet18'\n",
        "[round]\nquorum = 1.1\n",
        "[round]\nover-selection = 0.2\n",  # of every client?
        "[train]\nclients-per-round = 1.0\n",  # one, or all?
        "[train]\nclients-per-round = 0.0\n",
        "[train]\nclients-per-round = -0.5\n",
        "[train]\nclients-per-round = true\n",
        "[train]\nclients-per-round = '10%'\n",
        "name = '../elsewhere'\n",
        "train = 3\n",
    ],
)
def test_value_out_of_range_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load_config(write(tmp_path, text))


def test_mean_and_std_of_the_weights_are_three_shares_of_the_brightest_pixel(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, "[backbone]\nmean = [0.5, 0, 1]\nstd = [0.5, 0.25, 1]\n")
    config = load_config(path)
    assert config.backbone.mean == (0.5, 0.0, 1.0)
    again = load_config(write(tmp_path, config.to_toml()))
    assert again == config
    assert hash(again.backbone) == hash(config.backbone), "prepared backbones are remembered by it"
    path.write_text("[backbone]\nmean = [123.675, 116.28, 103.53]\nstd = [0.5, 0.5, 0]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    for key in ("backbone.mean.0=123.675 must be less", "backbone.std.2=0 must be greater"):
        assert key in str(caught.value)
    for text in ("mean = 0.5", "mean = [0.5, 0.5]", 'std = ["a", 1, 1]', "std = []"):
        with pytest.raises(ConfigError, match=r"backbone\.(mean|std)"):
            load_config(write(tmp_path, f"[backbone]\n{text}\n"))


def test_missing_and_broken_files_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        load_config(write(tmp_path, "[train\n"))


def test_resolved_config_round_trips(tmp_path: Path) -> None:
    config = load_config(None, parse_overrides(["train.lr=0.5", "strategy.args.mu=0.1"]))
    again = load_config(write(tmp_path, config.to_toml()))
    assert again == config
    assert again.train.lr == 0.5
    assert again.strategy.args == {"mu": 0.1}


def test_overrides_win_over_the_file_and_keep_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nlr = 0.1\nrounds = 7\n")
    config = load_config(path, parse_overrides(["train.lr = 0.2"]))
    assert (config.train.lr, config.train.rounds) == (0.2, 7)


@pytest.mark.parametrize("item", ["train.lr", "=3", "train..lr=1"])
def test_malformed_override_is_refused(item: str) -> None:
    with pytest.raises(ConfigError, match="section.key=value"):
        parse_overrides([item])


def test_every_default_is_valid() -> None:
    assert load_config(None) == Config()


TEXTS = ("nan", "inf", "true", "1e3", "7", "2024-01-05", "12:30:00", "[1]", "a=b")


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_of_an_override_is_the_value_of_a_key_that_takes_text(text: str) -> None:
    for key in ("name", "data.source", "partition.column", "strategy.name", "attack.kind"):
        for spelling in (text, f'"{text}"', f" '{text}' "):  # in a file it would be in quotes
            tree = parse_overrides([f"{key}={spelling}"])
            for part in key.split("."):
                tree = tree[part]
            assert tree == text


def test_every_word_that_a_key_offers_can_be_set() -> None:
    config = load_config(None, parse_overrides(["attack.kind=nan", "name=2024-01-05"]))
    assert (config.attack.kind, config.name) == ("nan", "2024-01-05")


def test_other_keys_take_toml() -> None:
    items = [
        "train.lr=1e3", "train.rounds=7", "data.strict=true", "simulation.cohort-memory=4GB",
        "strategy.args.mu=1e-3", "strategy.args.flag=true", "strategy.args.word=2024-01-05",
        "strategy.args.other=nan", 'strategy.args.text="1"', "strategy.args.list=[1, 2]",
    ]  # fmt: skip
    assert parse_overrides(items) == {
        "train": {"lr": 1000.0, "rounds": 7},
        "data": {"strict": True},
        "simulation": {"cohort-memory": "4GB"},
        "strategy": {
            "args": {
                "mu": 0.001, "flag": True, "word": "2024-01-05", "other": "nan", "text": "1",
                "list": [1, 2],
            }
        },
    }  # fmt: skip


def test_columns_are_named_for_tables_alone() -> None:
    for source in ("csv:labels.csv", "hf:food"):
        assert load_config(None, parse_overrides([f"data.source={source}", "data.label-column=y"]))
    with pytest.raises(ConfigError, match=r"data\.image-column is for csv: and hf:, .*'mnist5k'"):
        load_config(None, parse_overrides(["data.image-column=scan"]))


@pytest.mark.parametrize(
    ("value", "clients", "asked"),
    [("0.1", 50, 5), ("0.1", 55, 6), ("0.01", 8, 1), ("0.29", 100, 29), ("7", 50, 7), ("0", 50, 0)],
)
def test_a_share_of_the_clients_is_a_number_of_them(value: str, clients: int, asked: int) -> None:
    config = load_config(None, parse_overrides([f"train.clients-per-round={value}"]))
    assert config.train.asked(clients) == asked
    assert tomllib.loads(config.to_toml())["train"]["clients-per-round"] == float(value)


def test_what_is_neither_a_number_nor_a_share_of_clients_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"train\.clients-per-round=1\.0 must be a whole number"):
        load_config(None, {"train": {"clients-per-round": 1.0}})


def test_a_malformed_override_stands_beside_all_other_problems(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[train]\nlr = -1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "a.toml", items=["nonsense", "train.rouns=5", "seed=3"])
    assert len(caught.value.problems) == 3
    for part in ("'nonsense' is not of the form", "did you mean train.rounds?", "train.lr=-1"):
        assert part in str(caught.value)


def test_the_module_of_own_data_is_found_beside_the_experiment_then_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, working = tmp_path / "beside", tmp_path / "working"
    for folder in (beside, working):
        folder.mkdir()
        (folder / "both.py").write_text("")
    (working / "package").mkdir()
    (working / "package" / "__init__.py").write_text("")
    monkeypatch.chdir(working)
    for source, root in (
        ("both:data", beside), ("package.part:data", working), ("absent:data", ""),
        ("digits", ""), ("csv:both", ""),
    ):  # fmt: skip
        (beside / "e.toml").write_text(f'[data]\nsource = "{source}"\n')
        assert load_config(beside / "e.toml").data.root == str(root)
    (beside / "e.toml").write_text('[data]\nsource = "both:data"\nroot = "other"\n')
    assert load_config(beside / "e.toml").data.root == "other"


def test_privacy_fills_in_what_an_experiment_does_not_say() -> None:
    private = load_config(None, items=["privacy.epsilon=4"])
    assert (private.train.rounds, private.train.batch_size) == (10, 0)
    assert private.backbone.projection == "auto"
    assert private.partition.test_fraction == 0
    said = load_config(None, items=["privacy.epsilon=4", "train.rounds=20"])
    assert (said.train.rounds, said.train.batch_size) == (20, 0)
    for without in ([], ["privacy.epsilon=inf"]):
        assert load_config(None, items=without) == load_config(None)
    assert changed(private, {}) == private


@pytest.mark.parametrize("epsilon", ["0", "-1", "nan", "1e-7", '"4"', "true"])
def test_an_epsilon_is_a_number_above_zero(epsilon: str) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        load_config(None, items=[f"privacy.epsilon={epsilon}"])


def test_a_key_in_the_wrong_section_is_told_where_it_belongs() -> None:
    with pytest.raises(ConfigError, match=r"train\.epsilon, did you mean privacy\.epsilon\?"):
        changed(Config(), {"train": {"epsilon": 4}})
    with pytest.raises(ConfigError, match=r"key epsilon, did you mean privacy\.epsilon\?"):
        changed(Config(), {"epsilon": 4})
