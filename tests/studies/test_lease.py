"""One runner on a folder at a time, and the other one is told who it is."""

import os
import platform
import signal
import time

import pytest

from janus.errors import UserError
from scaling_studies.lease import LEASE_FILE, holder, only_runner
from tests.studies.test_runner import in_child


def test_a_second_runner_is_told_who_the_first_is(tmp_path):
    with only_runner(tmp_path / "study"):
        who = f"process {os.getpid()} on {platform.node()} since 20"
        assert holder(tmp_path / "study").startswith(who)
        with pytest.raises(UserError, match=f"another runner works on .*{who}"):
            with only_runner(tmp_path / "study"):
                pass
        assert holder(tmp_path / "study").startswith(who)
    assert holder(tmp_path / "study") == ""
    with only_runner(tmp_path / "study"):
        pass


def test_the_lease_of_a_killed_runner_is_free(tmp_path):
    def hold():
        with only_runner(tmp_path):
            time.sleep(600)

    child = in_child(hold)
    while not holder(tmp_path):
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert holder(tmp_path) == ""
    with only_runner(tmp_path):
        assert str(os.getpid()) in holder(tmp_path)


def test_a_runner_that_ends_with_an_error_leaves_no_name(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with only_runner(tmp_path):
            raise KeyboardInterrupt
    assert (tmp_path / LEASE_FILE).read_text() == ""  # on another host nobody could tell that it has died


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        with only_runner(tmp_path / "file" / "study"):
            pass
