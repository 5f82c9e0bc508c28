import numpy as np
import pytest
from safetensors.numpy import save_file

from eosjax.models.hf.part_files import find_parts, read_part
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.hf.weights import WeightsError


def touch(folder, *names):
    for name in names:
        (folder / name).touch()


def test_the_newest_step_that_all_parts_have(tmp_path):
    assert find_parts(tmp_path, ["eos_head"]) == {}
    touch(tmp_path, "eos_head--500_checkpoint.pt", "eos_head--10000_checkpoint.pt", "eos_head.txt", "action_head--20000_checkpoint.pt")
    assert find_parts(tmp_path, ["eos_head"]) == {"eos_head": tmp_path / "eos_head--10000_checkpoint.pt"}
    touch(tmp_path, "action_head--500_checkpoint.pt", "action_head--500_checkpoint.safetensors")
    both = find_parts(tmp_path, ["eos_head", "action_head", "proprio_projector"])
    assert both == {
        "eos_head": tmp_path / "eos_head--500_checkpoint.pt",
        "action_head": tmp_path / "action_head--500_checkpoint.safetensors",
    }
    touch(tmp_path, "eos_head--latest_checkpoint.pt", "action_head--latest_checkpoint.pt")
    assert {path.name for path in find_parts(tmp_path, ["eos_head", "action_head"]).values()} == {
        "eos_head--latest_checkpoint.pt",
        "action_head--latest_checkpoint.pt",
    }
    touch(tmp_path, "eos_head.safetensors")  # someone put it there: it goes with any step
    assert find_parts(tmp_path, ["eos_head"]) == {"eos_head": tmp_path / "eos_head.safetensors"}
    assert find_parts(tmp_path, ["eos_head", "action_head"])["action_head"].name == "action_head--latest_checkpoint.pt"


def test_parts_of_different_steps_are_refused(tmp_path):
    touch(tmp_path, "action_head--50000_checkpoint.pt", "proprio_projector--100000_checkpoint.pt", "eos_head--100000_checkpoint.pt")
    assert len(find_parts(tmp_path, ["proprio_projector", "eos_head"])) == 2
    with pytest.raises(WeightsError, match=r"different steps.*: action_head--50000_.*, proprio_projector--100000_.*; leave"):
        find_parts(tmp_path, ["action_head", "proprio_projector"])


def test_parts_that_the_policy_does_not_have(tmp_path):
    touch(tmp_path, "action_head--5_checkpoint.pt", "proprio_projector--5_checkpoint.pt")
    files = Pretrained(tmp_path).part_files(["action_head", "eos_head", "lora"])
    assert files.of == {"action_head": tmp_path / "action_head--5_checkpoint.pt"}
    assert files.aside == [tmp_path / "proprio_projector--5_checkpoint.pt"]
    touch(tmp_path, "vision_backbone--5_checkpoint.pt")
    assert Pretrained(tmp_path).part_files(["film"]).of == {"film": tmp_path / "vision_backbone--5_checkpoint.pt"}
    with pytest.raises(WeightsError, match=r"vision_backbone--5_checkpoint.pt: .* add --use_film True, or remove the file"):
        Pretrained(tmp_path).part_files(["action_head"])
    touch(tmp_path, "vision_backbone--6_checkpoint.pt")
    (tmp_path / "vision_backbone--5_checkpoint.pt").unlink()
    with pytest.raises(WeightsError, match="different steps"):
        Pretrained(tmp_path).part_files(["action_head", "film"])


def test_parts_from_both_kinds_of_file(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"fc1.weight": array}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read_part(tmp_path / "a.safetensors")["fc1.weight"], array)
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
    torch.save({"module.fc1.weight": torch.tensor(array).bfloat16()}, tmp_path / "a.pt")
    np.testing.assert_array_equal(read_part(tmp_path / "a.pt")["module.fc1.weight"], array)
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(WeightsError, match=r"b\.pt: expected a state dict"):
        read_part(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"PK nothing")
    with pytest.raises(WeightsError, match=r"c\.pt: unreadable"):
        read_part(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1, np.nan], np.float32), r"a\.safetensors: fc1.weight: expected numbers, got NaN or infinity"),
        (np.array([1, np.inf], np.float16), r"a\.safetensors: fc1.weight: expected numbers, got NaN or infinity"),
        (np.array([1, 2], np.int8), r"a\.safetensors: fc1.weight: expected weights in one of F64, F32, F16, BF16, got I8"),
    ],
)
def test_parts_that_are_no_finite_numbers(tmp_path, array, message):
    save_file({"fc1.weight": array}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=message):
        read_part(tmp_path / "a.safetensors")
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
    torch.save({"fc1.weight": torch.tensor(array)}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"a\.pt: fc1.weight: expected (numbers, got NaN|weights in .*, got torch.int8)"):
        read_part(tmp_path / "a.pt")
