"""Official sets are prepared once; what is missing for it is said in one line."""

import importlib.util

import pytest

from gsg_jax.data import prepare


def test_official_sets_ask_for_tensorflow_in_one_line(tmp_path, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else real(name)
    )
    assert prepare.main(["cifar10", f"--data_dir={tmp_path}"]) == 1
    message = capsys.readouterr().err
    assert "pip install 'gsg_jax[prepare]'" in message
    assert message.count("\n") == 1


def test_the_name_is_checked_before_tensorflow_is_asked_for(tmp_path, capsys):
    assert prepare.main(["cifar100x", f"--data_dir={tmp_path}"]) == 1
    assert capsys.readouterr().err.startswith(
        "error: TFDS has no data set 'cifar100x': did you mean cifar100"
    )


@pytest.mark.parametrize("arguments", [["cifar10"], ["--data_dir=tfds"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        prepare.main(arguments)
    assert exit_info.value.code == 2 and capsys.readouterr().err
