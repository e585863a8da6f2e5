"""The file of left-out images: every reason once, in any bytes, over several starts."""

import os

from gsg_jax.run.left_out import LeftOut


def test_every_reason_is_a_line_once_over_several_starts(tmp_path):
    path = tmp_path / "left_out.txt"
    assert len(LeftOut(path)) == 0 and not path.exists()
    name = os.fsdecode(b"caf\xe9.png")
    first = LeftOut(path)
    first.add("a.png (cut)", f"{name} (cut)", "two\nlines.png (cut)")
    again = LeftOut(path)
    again.add("a.png (cut)", "two\nlines.png (cut)", "b.png (cut)")
    assert len(again) == 4
    assert path.read_bytes() == (
        b"a.png (cut)\ncaf\xe9.png (cut)\ntwo lines.png (cut)\nb.png (cut)\n"
    )


def test_what_several_hosts_have_met_is_counted_once(tmp_path):
    here, there = (LeftOut(tmp_path / "left_out.txt") for _ in range(2))
    here.add("a.png (cut)", "b.png (cut)")
    there.add("b.png (cut)", "c.png (cut)")
    assert len(here) == len(there) == 3


def test_what_was_planted_at_its_name_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "mine").write_text("precious")
    path = tmp_path / "left_out.txt"
    path.symlink_to("mine")
    LeftOut(path).add("; touch x #.png (cut)")
    assert (tmp_path / "mine").read_text() == "precious"
    assert path.read_text() == "; touch x #.png (cut)\n" and not path.is_symlink()
    path.unlink()
    os.mkfifo(path)
    LeftOut(path).add("a.png (cut)")
    assert path.read_text() == "a.png (cut)\n"
