"""Where the time of the tests goes, by file and by phase, and a limit for those that everybody waits for."""

import collections
import os

import pytest

# What JAX reports of itself. Tracing what calls jitted functions counts the inner ones again.
PHASES = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
COLUMNS = ("seconds", "processor", *PHASES.values(), "programs")
UNLIMITED = ("slow", "every_method")


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("ssl_jax")
    group.addoption(
        "--limit",
        type=float,
        metavar="SECONDS",
        help=f"fail if a test that is not marked {' or '.join(UNLIMITED)} takes more processor time than this",
    )
    group.addoption(
        "--third",
        type=int,
        choices=(0, 1, 2),
        help="of the tests marked every_method run each third one, from this on",
    )


def keep_a_third(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --third, leaves out the other two thirds of the tests marked every_method."""
    if (third := config.option.third) is None:
        return
    marked = [item for item in items if item.get_closest_marker("every_method")]
    left_out = {item for number, item in enumerate(marked) if number % 3 != third}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def processor_seconds() -> float:
    """Of this process and its children that have ended. Other work on the machine changes it little."""
    return sum(os.times()[:4])


class Times:
    """Measures each test where it runs; of all workers together prints a table, and fails the session."""

    def __init__(self, config: pytest.Config):
        self.limit = config.option.limit
        self.table = config.option.durations is not None
        self.spent: collections.Counter[str] = collections.Counter()
        self.processor = processor_seconds()
        self.files: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.tests: collections.Counter[str] = collections.Counter()
        self.limited: set[str] = set()

        import jax.monitoring  # not before conftest.py has set JAX's variables

        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event, duration, **_):
        if phase := PHASES.get(event):
            self.spent[phase] += duration
            self.spent["programs"] += phase == "compile"

    def pytest_runtest_logstart(self):
        self.processor = processor_seconds()  # waiting for another worker is not the test's time, nor are imports

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        before, self.processor = self.processor, processor_seconds()
        # Sent to the controller with the report.
        report.times = {**self.spent, "seconds": call.duration, "processor": self.processor - before}
        report.limited = not any(item.get_closest_marker(mark) for mark in UNLIMITED)
        self.spent.clear()
        return report

    def pytest_runtest_logreport(self, report):
        if not hasattr(report, "times"):  # pytest-xdist's own, of a test during which a worker died
            return
        file = report.nodeid.partition("::")[0]
        self.files[file].update(report.times)
        self.files[file]["tests"] += report.when == "call"
        # A program's time is counted when it has ended: a worker's last test ends the session's servers.
        if report.when != "teardown":
            self.tests[report.nodeid] += report.times["processor"]
        if report.limited:
            self.limited.add(report.nodeid)

    def over_limit(self):
        if self.limit is None:
            return {}
        return {test: t for test, t in self.tests.most_common() if t > self.limit and test in self.limited}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if self.over_limit() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.table:
            terminalreporter.section("seconds by file: by the clock, of the processor, in parts of JAX")
            terminalreporter.write_line(self._row("file", "tests", COLUMNS))
            total = sum(self.files.values(), collections.Counter())
            for file, spent in [*sorted(self.files.items(), key=lambda x: -x[1]["processor"]), ("all", total)]:
                figures = [f"{spent[c]:.0f}" if c == "programs" else f"{spent[c]:.1f}" for c in COLUMNS]
                terminalreporter.write_line(self._row(file, spent["tests"], figures))
        if over := self.over_limit():
            title = f"over {self.limit:g} s of processor time: make it faster, or mark it slow"
            terminalreporter.section(title, red=True)
            for test, seconds in over.items():
                terminalreporter.write_line(f"{seconds:.1f} s {test}")

    @staticmethod
    def _row(file, tests, columns):
        return f"{file:45}{tests:>6}" + "".join(f"{column:>10}" for column in columns)
