"""One line, whatever is in it; whole across processes."""

import pickle

from uniaudio.errors import MissingDependency, UserError


def test_error_is_one_line_with_every_part():
    error = UserError("a\nb", seen=[1], allowed="2, 3", remedy="do\nthis")
    assert str(error) == "a b | seen: [1] | allowed: 2, 3 | remedy: do this"


def test_error_survives_a_process_border():
    for error in (UserError("x", seen=1), MissingDependency("ray", needed_for="the farm", extra="farm")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
