"""The roll: who is missing is named, and who does not agree is refused, on every side."""

import dataclasses
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from rcjax import distributed
from rcjax.roll_call import Member, RollCallError, Seat, call_roll
from tests.processes import free_port


def member(process, count=3, host="a", **facts):
    return Member(process, count, host, 4, {"config.seed": 1, **facts})


def call(*members, timeout=20, port=None):
    """What each member gets: its seats, or the complaint."""
    port = port or free_port()

    def one(who):
        try:
            return call_roll(f"127.0.0.1:{port}", who, timeout)
        except RollCallError as error:
            return str(error)

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(one, members))


def test_all_learn_where_the_others_are():
    seats = [Seat("a", 4), Seat("b", 4), Seat("b", 4)]
    assert call(member(2, host="b"), member(0), member(1, host="b")) == [seats] * 3


def test_the_missing_are_named_to_all_that_came():
    ours, theirs = call(member(0, 5), member(2, 5), timeout=1)
    assert ours == theirs
    assert ours.startswith("processes 1, 3, 4 did not join within 1 s;")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (member(1, count=4), "--num_processes is 4 for process 1 (a) and 3 for process 0 (a); give all"),
        (member(1, **{"config.seed": 2}), "config.seed is 2 for process 1 (a) and 1 for process 0 (a); give all"),
        (member(1, **{"the version of jax": "0.1"}), "the version of jax is '0.1' for process 1 (a) and 'missing' for"),
    ],
)
def test_who_does_not_agree_is_refused_on_every_side(other, words):
    answers = call(member(0), other, member(2))
    assert all(words in answer for answer in answers), answers


def test_two_that_are_the_same_are_refused():
    assert all("two processes say that they are process 1" in answer for answer in call(*map(member, (0, 1, 1))))


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"port {port} of the coordinator is in use" in call(member(0), port=port)[0]


def test_a_process_0_that_is_not_there_and_one_that_is_none():
    assert "process 0 did not answer at 127.0.0.1:" in call(member(1), timeout=0.5)[0]
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(call, member(1), port=server.getsockname()[1])
        connection, _ = server.accept()
        connection.recv(2**16)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
        connection.close()
        assert "gives no verdict" in answer.result()[0]


def test_what_strangers_send_is_not_minded():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, member(0, 2), port=port)

        def connect():
            while True:
                try:
                    return socket.create_connection(("127.0.0.1", port))
                except OSError:
                    assert not first.done()

        with connect() as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            second = pool.submit(call, member(1, 2), port=port)
            assert first.result() + second.result() == [[Seat("a", 4)] * 2] * 2


def test_places_are_found_as_clusters_name_them(monkeypatch):
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RollCallError, match="--distributed finds no TPU pod, SLURM step, Open MPI job"):
        distributed.find_place(None, None, None)
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911")
    with pytest.raises(RollCallError, match=r"can not read this cluster's description .*OMPI_COMM_WORLD_SIZE"):
        distributed.find_place(None, None, None)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1")
    place = distributed.find_place(None, None, None)
    assert place.address.startswith("10.96.0.1:")
    assert dataclasses.astuple(place)[1:] == (4, 3, (1,))
    for name, value in {"JOB_ID": 77, "NTASKS": 6, "PROCID": 5, "LOCALID": 1, "STEP_NODELIST": "gpu[03-05]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    for name in [name for name in os.environ if name.startswith("OMPI_")]:  # without the address it would be Open MPI 5
        monkeypatch.delenv(name)
    assert distributed.find_place(None, None, None) == distributed.Place("gpu03:61517", 6, 5, (1,))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("10.0.0.1:80", 2, None), "--process_id is missing"),
        ((None, None, 1), "--coordinator is missing"),
        (("10.0.0.1", 2, 1), "--coordinator=10.0.0.1 is no address; expected HOST:PORT"),
        (("10.0.0.1:80", 2, 2), "--process_id=2 does not go with --num_processes=2"),
    ],
)
def test_flags_that_can_not_be_meant(flags, words):
    with pytest.raises(RollCallError, match=words):
        distributed.find_place(*flags)
