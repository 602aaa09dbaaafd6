"""A fleet's life: Ray is started, the replicas come up, a signal comes, they finish, all of it goes."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from loralab.errors import ConfigError
from loralab.models.load import load_config
from loralab.serving.errors import ServingError
from loralab.serving.http.keys import read_keys
from loralab.serving.http.log import Log, event
from loralab.serving.http.server import bind
from loralab.serving.replicas.settings import Fleet

__all__ = ["NAME", "application", "run_fleet"]

NAME = "loralab"
"""What the application is called in Ray Serve."""

Started = Callable[[str, int, list[dict[str, Any]]], None]

_ENGINE = "engine"
_LATE = 10.0
"""Seconds for a replica to answer, beyond what it was given."""
_LOOK = 0.5
"""Seconds between looks at the replicas' logs."""
_OBJECTS = 128 << 20
"""Bytes for Ray's shared memory: messages are small."""


def application(fleet: Fleet, actor: dict[str, float]) -> Any:
    """Return the Ray Serve application: `fleet.replicas` engines, and the front before them.

    `actor` is what each engine takes of a machine, as ``{"num_gpus": 1}``. It has to be run as `NAME`:
    ``serve.run(application(fleet, {"num_gpus": 1}), name=NAME)``.
    """
    from ray import serve

    from loralab.serving.replicas.front import make_front
    from loralab.serving.replicas.replica import Replica

    class Engine(Replica):
        held = serve.multiplexed(max_num_models_per_replica=fleet.engine.slots)(Replica.held)

    base, max_body = fleet.base_name, fleet.max_body

    # It goes to a process that has no model, so nothing that it names may need torch.
    def build() -> Any:
        return make_front(serve.get_deployment_handle(_ENGINE, NAME), base, max_body)

    class Front:
        def __init__(self, engines: Any) -> None: ...

    # As many as run may wait in an engine, which is fair between them; what is more goes to other replicas.
    most = 2 * fleet.engine.max_running
    engines: Any = serve.deployment(
        Engine,
        name=_ENGINE,
        num_replicas=fleet.replicas,
        max_ongoing_requests=most,
        max_queued_requests=fleet.engine.max_waiting,
        ray_actor_options=actor,
        graceful_shutdown_timeout_s=fleet.deadline,
        health_check_period_s=2.0,
    )
    front: Any = serve.deployment(
        serve.ingress(build)(Front),
        name="front",
        max_ongoing_requests=fleet.replicas * most + fleet.engine.max_waiting,
        ray_actor_options={"num_cpus": 0},
    )
    return front.bind(engines.bind(fleet))


def run_fleet(fleet: Fleet, log: Log, started: Started) -> None:
    """Serve until SIGTERM or SIGINT; then finish what runs, as long as `fleet.deadline`, and end Ray too.

    `log` takes the lines of all replicas; `started` the host, the port and how each replica is. A second
    signal ends everything at once; SIGHUP has the replicas read the keys again. Ray is started here, on the
    processors or GPUs of this machine, unless the variable RAY_ADDRESS names a cluster.

    Raises:
        ModelError: there is no such base.
        ConfigError: Ray is not installed; there are not so many GPUs; the port is in use; or the file of
            keys has a fault.
        ServingError: a replica did not come up.
    """
    fleet = _checked(fleet)
    told, again, ours = threading.Event(), threading.Event(), sys.stdout

    def say(line: dict[str, object]) -> None:
        with redirect_stdout(ours):
            log(line)

    # Ray prints lines of its own, and standard output is to have none but the log's.
    with redirect_stdout(sys.stderr), _ray(fleet) as actor, _signals(told, again):
        engines = _begin(fleet, actor)
        replicas = _everywhere(engines, "describe")
        faults = sorted({one["fault"] for one in replicas if one.get("fault")})
        if faults:
            raise ConfigError(faults[0])
        with redirect_stdout(ours):
            started(fleet.host, fleet.port, replicas)
        while not told.wait(_LOOK):
            if again.is_set():
                again.clear()
                _everywhere(engines, "reread")
            _pass_on(engines, say)
        say(event("draining", deadline=fleet.deadline))
        _everywhere(engines, "drain")
        _everywhere(engines, "finish", fleet.deadline, timeout=fleet.deadline + _LATE)
        _pass_on(engines, say)
    log(event("stopped"))


def _begin(fleet: Fleet, actor: dict[str, float]) -> Any:
    """Bring the replicas up, and return the handle of all of them."""
    from ray import serve

    # Importing it set it to INFO.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": fleet.host, "port": fleet.port},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    try:
        serve.run(application(fleet, actor), name=NAME, route_prefix="/")
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ServingError(f"the replicas did not come up: {lines[-1] if lines else error!r}") from error
    return serve.get_deployment_handle(_ENGINE, NAME)


def _checked(fleet: Fleet) -> Fleet:
    """Return the fleet with absolute paths and a port that is free, so that faults show before Ray is up."""
    missing = [name for name in ("ray", "fastapi", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"--replicas needs {', '.join(missing)}: pip install 'loralab[serve,scale]'.")
    if fleet.replicas < 1:
        raise ConfigError(f"--replicas is {fleet.replicas}; expected at least 1.")
    if fleet.api_keys:
        read_keys(fleet.api_keys)
    load_config(fleet.model)
    with bind(fleet.host, fleet.port) as probe:
        port = probe.getsockname()[1]
    return replace(
        fleet,
        model=str(Path(fleet.model).resolve()) if Path(fleet.model).exists() else fleet.model,
        adapters=tuple(folder.resolve() for folder in fleet.adapters),
        api_keys=fleet.api_keys.resolve() if fleet.api_keys else None,
        port=port,
    )


@contextmanager
def _ray(fleet: Fleet) -> Iterator[dict[str, float]]:
    """Start Ray, or go to the cluster there is; yield what a replica may take. At the end all of it ends."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    gpus = torch.cuda.device_count()
    cluster = bool(os.environ.get("RAY_ADDRESS"))
    if gpus and not cluster and fleet.replicas > gpus:
        raise ConfigError(f"--replicas is {fleet.replicas}, and there are {gpus} GPUs; each needs its own.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = max(1, cores // fleet.replicas)
    if cluster:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            num_cpus=max(cores, each * fleet.replicas),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECTS,
        )
    try:
        yield {"num_cpus": 1, "num_gpus": 1} if gpus else {"num_cpus": each}
    finally:
        if cluster:
            serve.delete(NAME)
        # A Ray of our own goes with all that is in it.
        ray.shutdown()


@contextmanager
def _signals(told: threading.Event, again: threading.Event) -> Iterator[None]:
    """Set `told` at the first SIGTERM or SIGINT; at the second, end at once. Set `again` at SIGHUP."""

    def stop(number: int, frame: object) -> None:
        if told.is_set():
            os._exit(128 + number)
        told.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda number, frame: again.set())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(engines: Any, log: Log) -> None:
    """Write the lines that the replicas have."""
    for lines in _everywhere(engines, "lines"):
        for line in lines:
            log(line)


def _everywhere(engines: Any, method: str, *given: Any, timeout: float = _LATE) -> list[Any]:
    """Return what each replica says; those that are lost, or do not say anything in time, say nothing."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import DeploymentUnavailableError

    try:
        told = engines.broadcast(method, *given).results(timeout_s=timeout, return_exceptions=True)
    except (RayError, DeploymentUnavailableError, TimeoutError):
        return []
    return [one for one in told if not isinstance(one, BaseException)]
