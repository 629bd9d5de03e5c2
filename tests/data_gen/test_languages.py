"""Every language whose toolchain is here: compiled, run, limited and isolated as Python is; the others are told."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from data_gen import languages
from data_gen.languages import LANGUAGES, LanguageError, language_of, run_source
from data_gen.sandbox import Limits, Verdict

QUICK = Limits(cpu_seconds=1, wall_seconds=3, memory_mb=512, file_bytes=1 << 20, open_files=256, processes=64)

ECHO = {
    "python": "print(input())",
    "cpp": "#include <bits/stdc++.h>\nusing namespace std;\n"
    "int main() { string s; getline(cin, s); cout << s << '\\n'; }",
    "java": "import java.util.*;\npublic class Main { public static void main(String[] a) {"
    " System.out.println(new Scanner(System.in).nextLine()); } }",
    "js": "console.log(require('fs').readFileSync(0, 'utf8').trim())",
    "ts": "declare var require: any;\nconst s: string = require('fs').readFileSync(0, 'utf8').trim();\nconsole.log(s)",
    "rust": 'fn main() { let mut s = String::new(); std::io::stdin().read_line(&mut s).unwrap(); print!("{}", s); }',
    "go": 'package main\nimport ("bufio"; "fmt"; "os")\n'
    "func main() { s := bufio.NewScanner(os.Stdin); s.Scan(); fmt.Println(s.Text()) }",
    "bash": 'read -r line\necho "$line" | cat',
    "php": "<?php echo fgets(STDIN);",
    "perl": "print scalar <STDIN>;",
    "ruby": "puts gets",
    "lua": "print(io.read())",
    "r": "cat(readLines(file('stdin'), 1), sep = '\\n')",
}
# Status 3, an endless loop, and (where there is a compiler) what does not compile.
ENDS = {
    "python": ("raise SystemExit(3)", "while True: pass"),
    "cpp": ("int main() { return 3; }", "int main() { volatile int i = 0; while (true) i = i + 1; }"),
    "java": (
        "class Main { public static void main(String[] a) { System.exit(3); } }",
        "class Main { public static void main(String[] a) { while (true) { } } }",
    ),
    "js": ("process.exit(3)", "while (true) {}"),
    "ts": ("declare var process: any;\nprocess.exit(3)", "while (true) {}"),
    "rust": ("fn main() { std::process::exit(3) }", "fn main() { loop {} }"),
    "go": ('package main\nimport "os"\nfunc main() { os.Exit(3) }', "package main\nfunc main() { for { } }"),
    "bash": ("exit 3", "while :; do :; done"),
    "php": ("<?php exit(3);", "<?php while (true) {}"),
    "perl": ("exit 3;", "while (1) {}"),
    "ruby": ("exit 3", "loop {}"),
    "lua": ("os.exit(3)", "while true do end"),
    "r": ("quit(status = 3)", "repeat {}"),
}
BROKEN = {
    "cpp": "int main() { return x; }",
    "java": "class Main { int x = true; }",
    "ts": "const x: number = 'text';",
    "rust": 'fn main() { let x: i32 = "text"; }',
    "go": "package main\nfunc main() { x }",
}


def needs(name):
    language = LANGUAGES[name]
    return pytest.param(
        name, marks=pytest.mark.skipif(not language.available, reason=f"no {name} here: {language.install_hint}")
    )


@pytest.fixture(scope="module")
def sandbox():
    with languages.language_sandbox(workers=1) as box:
        yield box


@pytest.mark.parametrize("name", [*map(needs, LANGUAGES)])
def test_program_reads_its_input_and_its_output_comes_back_as_it_is(sandbox, name):
    outcome = run_source(name, ECHO[name], stdin="grüße  1\n", sandbox=sandbox)
    assert outcome.verdict == Verdict.PASSED, outcome
    assert outcome.stdout == "grüße  1\n"


@pytest.mark.parametrize("name", [*map(needs, LANGUAGES)])
def test_other_exit_status_is_no_pass(sandbox, name):
    outcome = run_source(name, ENDS[name][0], sandbox=sandbox)
    assert (outcome.verdict, outcome.error) == (Verdict.FAILED, "ExitStatus"), outcome


@pytest.mark.parametrize("name", [*map(needs, LANGUAGES)])
def test_endless_loop_ends_at_the_limit_of_the_run_alone(sandbox, name):
    outcome = run_source(name, ENDS[name][1], limits=QUICK, sandbox=sandbox)
    assert outcome.verdict == Verdict.TIMEOUT, outcome


@pytest.mark.parametrize("descriptor", [3, 4, 5, 6])
def test_a_program_has_no_descriptor_of_its_harness(sandbox, descriptor):
    outcome = run_source("bash", f"echo hello >&{descriptor}\n", sandbox=sandbox)
    assert outcome.verdict == Verdict.FAILED
    assert f"{descriptor}: Bad file descriptor" in outcome.feedback


@pytest.mark.parametrize("name", [*map(needs, BROKEN)])
def test_what_does_not_compile_says_so_without_paths_of_this_machine(sandbox, name):
    outcome = run_source(name, BROKEN[name], sandbox=sandbox)
    assert (outcome.verdict, outcome.error) == (Verdict.FAILED, "CompileError"), outcome
    assert re.search(r"(?m)main\.|Main\.", outcome.feedback)
    assert "/tmp/" not in outcome.feedback


MEMORY = {
    "cpp": "#include <vector>\nint main() { std::vector<char> v(2000000000, 1); return v[7]; }",
    "java": "class Main { public static void main(String[] a) { long[][] x = new long[99][];"
    " for (int i = 0; i < 99; i++) x[i] = new long[9999999]; System.out.println(x[7][7]); } }",
    "js": "const x = []; while (true) x.push(new Array(100000).fill(1.5));",
    "rust": "fn main() { let mut v: Vec<Vec<u8>> = vec![]; loop { v.push(vec![1; 1 << 26]); } }",
    "go": "package main\nfunc main() { x := [][]byte{}; for { b := make([]byte, 1<<26); for i := range b { b[i] = 1 };"
    " x = append(x, b) } }",
    "bash": "x=x; while :; do x=$x$x; done",
    "perl": "my @x; while (1) { push @x, 'x' x 10000000; }",
    "php": "<?php ini_set('memory_limit', -1); $x = []; while (true) $x[] = str_repeat('x', 10000000);",
}


@pytest.mark.parametrize("name", [*map(needs, MEMORY)])
def test_memory_is_limited(sandbox, name):
    outcome = run_source(name, MEMORY[name], sandbox=sandbox)
    assert outcome.verdict not in (Verdict.PASSED, Verdict.TIMEOUT), outcome


HOSTILE = {
    "fork bomb": ":(){ :|:& };:\nwait\nexit 1",
    "children that each take memory": "for i in 1 2 3 4 5 6; do perl -e '$x = \"x\" x 300000000; sleep 9' & done; wait",
    "daemon": "setsid sleep 60 >/dev/null 2>&1 < /dev/null & exit 1",
    "write to the system": "echo x > /usr/bin/evil || exit 1",
    "network": "exec 3<>/dev/tcp/1.1.1.1/53 || exit 1",
    "kill all": "kill -9 -1; sleep 60",
    "shadow": "cat /etc/shadow",
    "a disk full of zeros": "for i in $(seq 999); do head -c 9000000 /dev/zero > f$i || exit 1; done",
    "exit status of the compiler's driver": "kill -9 $PPID; kill -9 1; exit 1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_shell_script_ends_and_leaves_nothing(sandbox, name):
    outcome = run_source("bash", HOSTILE[name], limits=QUICK, sandbox=sandbox)
    assert outcome.verdict != Verdict.PASSED, outcome
    assert outcome.seconds < QUICK.wall_seconds + 3
    clean = run_source("bash", "ls -A; ls -A ..", sandbox=sandbox)
    assert clean.stdout.split() == ["main.sh", "attempt"], clean
    users = {worker.reached["uid"] for worker in sandbox._all} - {None}
    owners = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            owners.append(os.stat(f"/proc/{pid}").st_uid)
    assert len([owner for owner in owners if owner in users]) <= 1  # the child that waits for the next program


def test_memory_of_several_processes_counts_together(sandbox):
    outcome = run_source("bash", HOSTILE["children that each take memory"], limits=QUICK, sandbox=sandbox)
    assert outcome.verdict == Verdict.MEMORY, outcome


def test_missing_toolchain_is_told_with_the_package_and_is_no_failure(monkeypatch):
    languages._toolchain.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    try:
        assert not LANGUAGES["php"].available
        assert LANGUAGES["python"].available
        with pytest.raises(LanguageError, match="php is not installed here; get it with: apt-get install php-cli"):
            run_source("php", "<?php")
    finally:
        languages._toolchain.cache_clear()


def test_unknown_language_is_told():
    with pytest.raises(LanguageError, match="language 'cobol' is none of python, cpp"):
        language_of("cobol")
    assert language_of("rs") is LANGUAGES["rust"]
    assert language_of("JavaScript") is LANGUAGES["js"]


def test_toolchain_in_a_home_directory_is_shown_without_the_home(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:  # not in /tmp: that is the programs' own in there
        home = Path(place, "home")
        program = home / "tools" / "strange" / "bin" / "strange"
        program.parent.mkdir(parents=True)
        program.write_text('#!/bin/bash\nsource "$1"\n')
        program.chmod(0o755)
        Path(home, "secret").write_text("secret")
        home.chmod(0o700)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        run = languages._interpreter("strange", "main.st")
        language = languages.Language("strange", "main.st", ("strange",), "apt-get install strange", run)
        monkeypatch.setitem(languages.LANGUAGES, "strange", language)
        outcome = run_source("strange", f"ls {home}; ls {home}/tools; cat {home}/secret && echo read", limits=QUICK)
    assert outcome.stdout == "tools\nstrange\n", outcome


def test_command_lists_what_is_here_and_how_to_add_the_rest():
    root = Path(__file__).parents[2]
    # Without a PATH nothing is found but this Python: everything else must come with its package.
    environment = os.environ | {"PYTHONPATH": str(root), "PATH": "/nowhere"}
    command = [sys.executable, "-m", "data_gen", "languages"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert re.match(r"python +yes +Python 3", lines["python"])
    assert re.match(r"go +no +apt-get install golang-go", lines["go"])
    assert re.match(r"ts +no +npm install -g typescript", lines["ts"])
    assert "isolation:" in done.stdout
