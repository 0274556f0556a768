"""Starting Ray and choosing how many of what, without starting any."""

import logging

import pytest

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm import pool


def make_config(**fields: object) -> FarmConfig:
    return FarmConfig.model_validate({"manifest": "m", "output_dir": "o", "tokenizers": {"midi": {"name": "f0"}}} | fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, 0), ({"decode_workers": 3}, 3), ({"gpus_per_worker": 1.0, "workers": 4}, 12), ({"gpus_per_worker": 1.0, "decode_workers": 0}, 0)],
)
def test_cpus_decode_ahead_only_beside_gpus_or_where_asked(fields: dict, expected: int) -> None:
    assert pool.decoders(make_config(**fields), cores=16) == expected


def test_a_ray_that_comes_up_late_is_started_again_and_given_up_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def late(**options: object) -> None:
        tries.append(options)
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(pool.ray, "init", late)
    with pytest.raises(UserError, match=r"Ray did not start on this machine.*3 tries"):
        pool.start_ray(num_cpus=1)
    assert len(tries) == 3


def test_another_fault_of_rays_start_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**options: object) -> None:
        raise RuntimeError("no such option")

    monkeypatch.setattr(pool.ray, "init", broken)
    with pytest.raises(RuntimeError, match="no such option"):
        pool.start_ray()


def test_no_cluster_at_an_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**options: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(pool.ray, "init", refused)
    with pytest.raises(UserError, match=r"no Ray cluster at this address.*10.0.0.1:6379.*start a cluster"):
        pool._connect(make_config(ray_address="10.0.0.1:6379"), 1)


def test_gpus_that_this_machine_lacks_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "start_ray", lambda **options: None)
    monkeypatch.setattr(pool.ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(UserError, match=r"too few GPUs \| seen: 0.5 \| allowed: 0 \| remedy: gpus_per_worker=0 .*ray_address"):
        pool._connect(make_config(gpus_per_worker=0.5), 1)


@pytest.mark.parametrize(
    ("fields", "cores", "most"),
    [
        ({}, 4, 4),
        ({"workers": 9}, 4, 9),  # more than there is room for now: they wait for nodes to come
        ({"workers": 4, "decode_workers": 1}, 4, 3),
        ({"decode_workers": 3}, 4, 1),
    ],
)
def test_workers_never_take_the_last_core_of_those_who_decode(fields: dict, cores: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_connect", lambda config, jobs: (cores, pool.decoders(config, cores)))
    monkeypatch.setattr(pool.Pool, "grow", lambda self, wanted: None)
    assert pool.Pool(make_config(**fields), {}, jobs=100, kind=object).most == most


def test_no_core_for_decoding_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_connect", lambda config, jobs: (1, 1))
    with pytest.raises(UserError, match=r"no core is left to decode.*1 cores, decode_workers 1.*decode_workers=0"):
        pool.Pool(make_config(decode_workers=1), {}, jobs=1, kind=object)


def starting_pool(monkeypatch: pytest.MonkeyPatch, error: Exception) -> pool.Pool:
    """A pool whose actors never come up: `error` is what Ray says of each."""
    monkeypatch.setattr(pool, "_connect", lambda config, jobs: (1, 0))
    monkeypatch.setattr(pool.Pool, "grow", lambda self, wanted: None)

    def get(reference: object) -> None:
        raise error

    monkeypatch.setattr(pool.ray, "get", get)
    made = pool.Pool(make_config(), {}, jobs=1, kind=object)
    made._starting = {number: f"actor {number}" for number in range(9)}
    return made


def test_what_a_worker_cannot_load_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = UserError("this machine has no CUDA device", seen="cuda", allowed="auto, cpu")
    workers = starting_pool(monkeypatch, pool.ray.exceptions.RayTaskError("ready", "a trace", fault))
    with pytest.raises(UserError, match="no CUDA device"):
        workers.came_up(0)


def test_workers_that_die_one_after_another_while_they_start_end_the_farm(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = starting_pool(monkeypatch, pool.ray.exceptions.RayActorError(error_msg="out of memory"))
    for number in range(4):
        workers.came_up(number)  # nodes may go while workers start
    with pytest.raises(UserError, match=r"5 workers died while they started.*out of memory.*Ray's logs"):
        workers.came_up(4)
    assert workers.restarts == 5


def test_a_farm_goes_on_with_the_workers_that_there_is_room_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    workers = starting_pool(monkeypatch, pool.ray.exceptions.RayActorError(error_msg="out of memory"))
    workers._calls, workers.most = {"one": 0, "two": 1}, 4
    monkeypatch.setattr(logging.getLogger("uniaudio"), "propagate", True)
    for number in range(5):
        workers.came_up(number)
    assert workers.most == 2 and "5 workers died while they started; the farm goes on with the 2 that run" in caplog.text


@pytest.mark.parametrize(("fields", "calls"), [({}, 2), ({"decode_workers": 1}, 5)])
def test_a_worker_that_is_decoded_for_may_publish_several_units_at_once(fields: dict, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_connect", lambda config, jobs: (4, pool.decoders(config, 4)))
    monkeypatch.setattr(pool.Pool, "grow", lambda self, wanted: None)
    workers = pool.Pool(make_config(**fields), {}, jobs=1, kind=object)
    workers._calls = {"actor": 0}
    taken = 0
    while (actor := workers.free()) is not None:
        workers.took(actor, alone=False)
        taken += 1
    assert taken == calls
