"""Programs of other languages in the sandbox: which toolchains are here, how each compiles and runs.

``LANGUAGES`` has them by name, ``run_source`` compiles and runs one program. Each stage is a child of its own in the
same private directory, with limits of its own, and its exit status is seen by a process that no program can reach. A
toolchain that is absent makes a language unavailable (``Language.install_hint`` says what to install); it never makes a
program fail. ``python -m data_gen languages`` prints the table.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from data_gen.isolated import namespaces
from data_gen.sandbox import Limits, Outcome, Sandbox, Stage

# Compilers need more of everything than what they make.
COMPILE = Limits(
    cpu_seconds=60,
    wall_seconds=120,
    memory_mb=3072,
    file_bytes=128 << 20,
    open_files=1024,
    processes=96,
)
RUN = Limits(cpu_seconds=10, wall_seconds=20, memory_mb=1024, file_bytes=16 << 20, open_files=256, processes=96)
NODE_MODULES = ("/usr/lib/node_modules", "/usr/local/lib/node_modules", "/usr/share/nodejs")
_NODE_OWN = frozenset(("assert", "buffer", "crypto", "events", "fs", "os", "path", "perf_hooks", "process", "util"))
GO_PACKAGES = "/usr/share/gocode"
JAVATUPLES = "RCJAX_JAVATUPLES"  # environment variable: the jar that MultiPL-E's Java tests need
_JARS = ("/usr/share/java/javatuples.jar", "/usr/share/java/javatuples-1.2.jar")


class LanguageError(RuntimeError):
    """A language that is unknown or not installed; the message names the package."""


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """What of a language is on this machine.

    Attributes:
      programs: name -> absolute path of the real executable.
      readable: paths that the sandbox must show for it, besides the system's own.
      version: first line of what it says about itself.
    """

    programs: Mapping[str, str]
    readable: tuple[str, ...]
    version: str


@dataclasses.dataclass(frozen=True)
class Language:
    """How programs of one language are compiled and run.

    Attributes:
      name: key of ``LANGUAGES``.
      file: name of the source file.
      needs: executables.
      install_hint: the command that installs them.
      commands: (toolchain, source) -> commands of the stages, the last one runs the program.
      version: arguments that make the first executable tell its version.
      committed: limit memory in use, not address space: its runtime reserves far more than it uses.
      environment: variables for all stages.
    """

    name: str
    file: str
    needs: tuple[str, ...]
    install_hint: str
    commands: Callable[[Toolchain, str], list[list[str]]]
    version: tuple[str, ...] = ("--version",)
    committed: bool = False
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def toolchain(self) -> Toolchain | None:
        """What is here of it, None if an executable is missing."""
        return _toolchain(self.needs, self.version)

    @property
    def available(self) -> bool:
        """Whether programs of this language can run here."""
        return self.toolchain is not None


@functools.cache
def _toolchain(needs: tuple[str, ...], version: tuple[str, ...]) -> Toolchain | None:
    programs = {}
    for need in needs:
        # Python is this one: its packages are those that programs are promised.
        found = sys.executable if need == "python3" else next(filter(None, map(shutil.which, need.split("|"))), None)
        if found is None:
            return None
        programs[need.split("|")[0]] = _real(found)
    said = _said([next(iter(programs.values())), *version])
    return Toolchain(programs, tuple(path for program in programs.values() for path in _home(program)), said)


def _real(program: str) -> str:
    """The executable behind links and behind rustup's stand-ins, which would look for a home directory first."""
    real = os.path.realpath(program)
    if os.path.basename(real) == "rustup":
        sysroot = _said([program, "--print", "sysroot"])
        inside = os.path.join(sysroot, "bin", os.path.basename(program))
        return os.path.realpath(inside) if os.path.exists(inside) else real
    return real


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0] if lines else ""


def _home(program: str) -> list[str]:
    """What must be shown of a toolchain that is no part of the system: its own directory, no more of a home."""
    if any(program.startswith(place + "/") for place in namespaces.SYSTEM):
        return []
    head, inside, _ = program.partition("/node_modules/")
    if inside:  # packages lie beside those that they need
        return [head + "/node_modules"]
    directory = os.path.dirname(program)
    prefix = os.path.dirname(directory)
    if os.path.basename(directory) != "bin" or os.path.basename(prefix) in (".local", "") or prefix == str(Path.home()):
        return [program]
    return [prefix]


# ---- the languages


def _python(tools: Toolchain, source: str) -> list[list[str]]:
    return [[tools.programs["python3"], "-I", "-S", "-B", "main.py"]]


def _cpp(tools: Toolchain, source: str) -> list[list[str]]:
    command = [tools.programs["g++"], "-std=c++17", "-w", "-pipe", "-o", "program"]
    if re.search(r"#\s*include\s*<bits/stdc\+\+\.h>", source):
        header = precompiled_header()
        # First of all, as a precompiled header must be; the program includes it anyway.
        command += ["-I", header, "-include", "bits/stdc++.h"] if header else []
    libraries = ["-lcrypto"] if "<openssl/" in source else []
    return [[*command, "main.cpp", *libraries], ["./program"]]


def _java(tools: Toolchain, source: str) -> list[list[str]]:
    path = ".:" + (javatuples() or "")
    # Quick to start and small: one collector thread, no optimising compiler for programs that run for a moment.
    small = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xss16m", "-Xms16m"]
    compiler = [tools.programs["javac"], *(f"-J{flag}" for flag in [*small, "-Xmx1g"]), "-encoding", "UTF-8"]
    main = re.search(r"(?s)\bclass\s+(\w+)(?:(?!\bclass\s).)*?\bpublic\s+static\s+void\s+main\b", source)
    run = [tools.programs["java"], *small, "-Xmx512m", "-ea", "-cp", path, main.group(1) if main else "Main"]
    return [[*compiler, "-nowarn", "-proc:none", "-d", ".", "-cp", path, "Main.java"], run]


def _js(tools: Toolchain, source: str) -> list[list[str]]:
    return [[tools.programs["node"], "main.js"]]


def _ts(tools: Toolchain, source: str) -> list[list[str]]:
    # What MultiPL-E has (`tsc --target esnext`), with what was the default before TypeScript 6 said out loud.
    flags = ["--target", "esnext", "--module", "commonjs", "--strict", "false", "--noEmitOnError"]
    node, compiler = tools.programs["node"], tools.programs["tsc"]
    return [[node, compiler, *flags, "main.ts"], [node, "main.js"]]


def _rust(tools: Toolchain, source: str) -> list[list[str]]:
    test = ["--test"] if "#[test]" in source and not re.search(r"\bfn\s+main\s*\(", source) else []
    compiler = [tools.programs["rustc"], "--edition", "2021", "-A", "warnings", "-C", "debuginfo=0", *test]
    return [[*compiler, "-o", "program", "main.rs"], ["./program"]]


def _go(tools: Toolchain, source: str) -> list[list[str]]:
    cache, own = go_cache(), LANGUAGES["go"].environment["GOCACHE"]
    warm = [["/bin/cp", "-rs", cache, own]] if cache else []  # links: the go command must be able to write beside them
    if re.search(r"(?m)^func Test\w*\(\w+ \*testing\.T\)", source):
        move = [tools.programs["go"], "test", "-c", "-o", "program", "main_test.go"]
        return [*warm, move, ["./program", "-test.v"]]
    return [*warm, [tools.programs["go"], "build", "-o", "program", "main.go"], ["./program"]]


def _interpreter(program: str, file: str, *flags: str) -> Callable[[Toolchain, str], list[list[str]]]:
    return lambda tools, source: [[tools.programs[program], *flags, file]]


_NODE = {"NODE_PATH": ":".join(NODE_MODULES)}
_GO = {"GO111MODULE": "off", "GOPATH": GO_PACKAGES, "GOCACHE": f"{namespaces.WORK}/.go", "GOFLAGS": "-p=2"}
_LANGUAGES = (
    Language("python", "main.py", ("python3",), "apt-get install python3", _python),
    Language("cpp", "main.cpp", ("g++",), "apt-get install g++", _cpp),
    Language("java", "Main.java", ("javac", "java"), "apt-get install openjdk-17-jdk-headless", _java, committed=True),
    Language("js", "main.js", ("node",), "apt-get install nodejs", _js, committed=True, environment=_NODE),
    Language("ts", "main.ts", ("tsc", "node"), "npm install -g typescript", _ts, committed=True, environment=_NODE),
    Language("rust", "main.rs", ("rustc", "cc"), "apt-get install rustc gcc (or rustup)", _rust, committed=True),
    Language(
        "go",
        "main.go",
        ("go",),
        "apt-get install golang-go",
        _go,
        version=("version",),
        committed=True,
        environment=_GO,
    ),
    Language("bash", "main.sh", ("bash",), "apt-get install bash", _interpreter("bash", "main.sh")),
    Language("php", "main.php", ("php",), "apt-get install php-cli", _interpreter("php", "main.php"), committed=True),
    Language("perl", "main.pl", ("perl",), "apt-get install perl", _interpreter("perl", "main.pl")),
    Language("ruby", "main.rb", ("ruby",), "apt-get install ruby", _interpreter("ruby", "main.rb")),
    Language(
        "lua", "main.lua", ("lua|lua5.4|lua5.3",), "apt-get install lua5.4", _interpreter("lua", "main.lua"), ("-v",)
    ),
    Language(
        "r", "main.R", ("Rscript",), "apt-get install r-base-core", _interpreter("Rscript", "main.R", "--vanilla")
    ),
)
LANGUAGES: dict[str, Language] = {language.name: language for language in _LANGUAGES}
ALIASES = {"sh": "bash", "rs": "rust", "javascript": "js", "typescript": "ts", "c++": "cpp", "pl": "perl", "rb": "ruby"}


def language_of(name: str) -> Language:
    """A language by its name or another that is in use for it ("rs", "javascript").

    Raises:
      LanguageError: there is none of this name.
    """
    found = LANGUAGES.get(ALIASES.get(name.lower(), name.lower()))
    if found is None:
        raise LanguageError(f"language {name!r} is none of {', '.join(LANGUAGES)}")
    return found


def javatuples() -> str | None:
    """Path of the javatuples jar: what ``RCJAX_JAVATUPLES`` names, else where Debian puts it; None if there is none."""
    return next((path for path in (os.environ.get(JAVATUPLES), *_JARS) if path and os.path.exists(path)), None)


def node_module(name: str) -> bool:
    """Whether programs in JavaScript can load a module: one of node's own, or one that is installed for all."""
    if name.startswith("node:") or name in _NODE_OWN:
        return True
    return any(os.path.isdir(os.path.join(place, name)) for place in NODE_MODULES)


def testify() -> bool:
    """Whether the Go package that HumanEval-X's tests use is where Debian puts it."""
    return os.path.isdir(f"{GO_PACKAGES}/src/github.com/stretchr/testify")


def precompiled_header() -> str | None:
    """Directory with ``bits/stdc++.h`` precompiled for the flags of ``_cpp``. It saves two thirds of the compilation of
    a small program."""

    def make(directory: Path, tools: Toolchain) -> None:
        (directory / "bits").mkdir(mode=0o755)
        source = directory / "bits" / "stdc++.h"
        source.write_text("#ifndef RCJAX_STDCXX\n#define RCJAX_STDCXX\n#include_next <bits/stdc++.h>\n#endif\n")
        command = [tools.programs["g++"], "-std=c++17", "-w", "-x", "c++-header", str(source), "-o", f"{source}.gch"]
        subprocess.run(command, check=True, capture_output=True, timeout=240)

    return _warm("cpp", "stdc++-17", make)


def go_cache() -> str | None:
    """Directory with Go's compiled standard packages and testify: without it the go command compiles them each time."""

    def make(directory: Path, tools: Toolchain) -> None:
        packages = ["bufio", "bytes", "container/heap", "crypto/md5", "errors", "fmt", "math", "math/big", "math/rand"]
        packages += ["os", "reflect", "regexp", "sort", "strconv", "strings", "testing", "time", "unicode"]
        packages += ["github.com/stretchr/testify/assert"] if testify() else []
        with tempfile.TemporaryDirectory() as place:
            for name in ("main.go", "main_test.go"):
                lines = ["package main", *(f'import _ "{package}"' for package in packages), "func main() {}", ""]
                Path(place, name).write_text("\n".join(lines[: -2 if "test" in name else None]) + "\n")
            environment = {**os.environ, **LANGUAGES["go"].environment, "GOCACHE": str(directory), "GOFLAGS": ""}
            for move in (["build", "-o", "/dev/null", "main.go"], ["test", "-c", "-o", "program", "main_test.go"]):
                command = [tools.programs["go"], *move]
                subprocess.run(command, check=True, capture_output=True, timeout=240, cwd=place, env=environment)

    return _warm("go", "go-cache-testify" if testify() else "go-cache", make)


@functools.cache
def _warm(language: str, name: str, make: Callable[[Path, Toolchain], None]) -> str | None:
    """A directory that ``make`` fills: once for a compiler and a user, by us, and from the toolchain's own files alone.
    Programs can only read it. None where it can not be made; it only saves time."""
    tools = LANGUAGES[language].toolchain
    if tools is None:
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "rcjax" / re.sub(r"[^\w.+-]+", "-", f"{name}-{tools.version}")
    if directory.exists():
        return str(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=directory.parent))
        try:
            make(aside, tools)
            for place, _, files in os.walk(aside):
                os.chmod(place, 0o755)
                for file in files:
                    os.chmod(os.path.join(place, file), 0o644)
            aside.rename(directory)  # fails where another process was first
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except (OSError, subprocess.SubprocessError):
        return str(directory) if directory.exists() else None
    return str(directory)


# ---- running


def readable_paths(names: Iterable[str] | None = None) -> list[str]:
    """What a sandbox must show for programs of these languages (all that are here if None)."""
    paths: set[str] = set()
    for language in map(language_of, LANGUAGES if names is None else names):
        tools = language.toolchain
        paths |= set(tools.readable) if tools else set()
        further = {"cpp": precompiled_header, "go": go_cache, "java": javatuples}.get(language.name)
        if tools and further and (path := further()):
            paths.add(path)
    return sorted(paths)


def language_sandbox(names: Iterable[str] | None = None, workers: int | None = None, **options) -> Sandbox:
    """A sandbox that shows the toolchains of these languages (None: all that are here); ``options`` of ``Sandbox``."""
    return Sandbox(workers, readable=readable_paths(names), **options)


def stages_of(
    language: Language,
    source: str,
    stdins: Iterable[str] = ("",),
    limits: Limits = RUN,
    compile_limits: Limits = COMPILE,
) -> list[Stage]:
    """The commands for a source file: compile, then run once for each standard input.

    Raises:
      LanguageError: its toolchain is not here.
    """
    tools = language.toolchain
    if tools is None:
        raise LanguageError(f"{language.name} is not installed here; get it with: {language.install_hint}")
    *compilers, run = language.commands(tools, source)
    run[0] = os.path.join(namespaces.WORK, run[0][2:]) if run[0].startswith("./") else run[0]
    shared = {"environment": dict(language.environment), "committed": language.committed}
    stages = [Stage(tuple(command), compile_limits, "CompileError", **shared) for command in compilers]
    return stages + [Stage(tuple(run), limits, "ExitStatus", stdin=stdin, **shared) for stdin in stdins]


def run_source(
    language: str,
    source: str,
    *,
    stdin: str = "",
    limits: Limits = RUN,
    compile_limits: Limits = COMPILE,
    extra_files: Mapping[str, str | bytes] | None = None,
    sandbox: Sandbox | None = None,
) -> Outcome:
    """Compiles and runs one program. PASSED means: it compiled, ran, and ended with status 0.

    Args:
      language: name.
      source: content of the source file.
      stdin: its standard input.
      limits: of the run.
      compile_limits: of the compiler.
      extra_files: relative name -> content, beside the source file.
      sandbox: made by ``language_sandbox``; None starts one for this call.

    Raises:
      LanguageError: there is no such language, or its toolchain is not here.
      SandboxError: the sandbox does not work here.
    """
    found = language_of(language)
    stages = stages_of(found, source, (stdin,), limits, compile_limits)
    if sandbox is None:
        with language_sandbox([found.name], 1) as own:
            return run_source(found.name, source, stdin=stdin, limits=limits, extra_files=extra_files, sandbox=own)
    return sandbox.run_stages({source_file(found, source): source} | dict(extra_files or {}), stages)[-1]


def source_file(language: Language, source: str) -> str:
    """Name of the file that holds ``source``."""
    if language.name == "go" and "*testing.T" in source:
        return "main_test.go"  # the go command looks at names
    return language.file


def table() -> str:
    """What this machine has, and how to add the rest."""
    rows = []
    for language in LANGUAGES.values():
        tools = language.toolchain
        rows.append((language.name, "yes" if tools else "no", tools.version if tools else language.install_hint))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {here:<3}  {text}" for name, here, text in rows]
    jar = javatuples()
    hint = f"apt-get install libjavatuples-java, or name the jar in {JAVATUPLES}"
    lines.append(f"\nMultiPL-E's Java tests need javatuples 1.2: {jar or 'not here; ' + hint}")
    with Sandbox(1) as sandbox:
        lines.append(f"isolation: {sandbox.isolation}")
    return "\n".join(lines)
