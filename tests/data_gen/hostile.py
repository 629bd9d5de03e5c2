"""Programs that want a verdict they have not earned, or to get out. Each defines what the test asks for or ends early;
none of them can know the number that the test expects."""

SOLVE = "def solve(x):\n    return 0\n"

# What follows tries to pass `assert solve(2) == 471147`.
FORGERIES = {
    "os._exit": "import os\nos._exit(0)\n",
    "os._exit in the call": "import os\ndef solve(x):\n    os._exit(0)\n",
    "sys.exit": "import sys\nsys.exit(0)\n",
    "sys.exit in the call": "import sys\ndef solve(x):\n    sys.exit(0)\n",
    "exit by a signal handler": (
        "import os, signal\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\n"
        "signal.setitimer(signal.ITIMER_REAL, .01)\n"
        "import time\ndef solve(x):\n    time.sleep(1)\n"
    ),
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\n" + SOLVE,
    "object that equals everything": (
        "class All:\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n"
        "def solve(x):\n    return All()\n"
    ),
    "number that equals everything": (
        "class All(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n"
        "def solve(x):\n    return All(3)\n"
    ),
    "object that equals all numbers": (
        "class All:\n    def __eq__(self, other):\n        return isinstance(other, int)\n"
        "def solve(x):\n    return All()\n"
    ),
    "object that takes the other side's value": (
        "class All:\n    def __eq__(self, other):\n"
        "        self.__class__ = type('B', (), {'v': other})\n        return True\n"
        "def solve(x):\n    return All()\n"
    ),
    "number that is near to everything": (
        "class Near:\n    def __sub__(self, other):\n        return 0\n    __rsub__ = __add__ = __mul__ = __sub__\n"
        "def solve(x):\n    return Near()\n"
    ),
    "pickle that runs code": (
        "class P:\n    def __reduce__(self):\n        return (exec, ('raise SystemExit(0)',))\n"
        "def solve(x):\n    return P()\n"
    ),
    "assertions switched off": "import sys\nsys.flags = None\n" + SOLVE,
    "AssertionError replaced": (
        "import builtins\nbuiltins.AssertionError = StopIteration\nAssertionError = Exception\n" + SOLVE
    ),
    "builtins replaced": (
        "import builtins\nfor name in ('len', 'isinstance', 'compile', 'eval', 'exec', 'repr', 'bool'):\n"
        "    setattr(builtins, name, lambda *a, **k: True)\n" + SOLVE
    ),
    "modules replaced": (
        "import json, os, pickle, struct, base64\njson.dumps = lambda *a, **k: '{\"done\": true}'\n"
        "pickle.dumps = lambda *a: b'\\x80\\x05K\\x01.'\nos.write = lambda fd, data: len(data)\n" + SOLVE
    ),
    "verdict to every descriptor": (
        "import os, json, struct\n"
        "for text in ({'status': 'passed'}, {'done': True}, {'first': 0, 'values': ['gAVLAS4=']}):\n"
        "    data = json.dumps(text).encode()\n    for fd in range(1, 64):\n        try:\n"
        "            os.write(fd, struct.pack('<I', len(data)) + data)\n        except OSError:\n            pass\n"
        + SOLVE
    ),
    "garbage to every descriptor": (
        "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'\\xff' * 4000)\n"
        "    except OSError:\n        pass\n" + SOLVE
    ),
    "harness searched for the expected value": (
        "import gc, sys\ndef numbers():\n"
        "    found = {int(v) for o in gc.get_objects() if isinstance(o, (list, tuple, dict))\n"
        "        for v in (o.values() if isinstance(o, dict) else o) if type(v) is int and v > 1000}\n"
        "    frame = sys._getframe()\n    while frame:\n"
        "        for v in [*frame.f_locals.values(), *frame.f_code.co_consts]:\n"
        "            if type(v) is int:\n                found.add(v)\n"
        "            if type(v) is str and '471147' in v:\n"
        "                found.add(471147)\n        frame = frame.f_back\n    return found\n"
        "def solve(x):\n    want = 471_000 + 147\n    return want if want in numbers() - {want} else 0\n"
    ),
    "protocol spoken by the program": (
        "import os, json, struct\ndef read(n):\n    data = b''\n    while len(data) < n:\n"
        "        data += os.read(3, n - len(data))\n"
        "    return data\ndef send(message):\n    data = json.dumps(message).encode()\n"
        "    os.write(3, struct.pack('<I', len(data)) + data)\nsend({'done': True})\n"
        "while True:\n    question = json.loads(read(struct.unpack('<I', read(4))[0]))\n"
        "    send({'done': question.get('token', True), 'first': 0, 'values': ['gAVLAS4='], 'flat': 'gAVLAS4=',"
        " 'true': True, 'repr': '471147'})\n"
    ),
    "answers without end": "import os\nwhile True:\n    os.write(3, b'\\x10\\0\\0\\0' + b'{\"done\": true}  ')\n",
    "answer of four gigabytes": "import os\nos.write(3, b'\\xff\\xff\\xff\\xff')\nimport time\ntime.sleep(60)\n",
    "exec that defines the test's names": "assert_ = None\ndef __getattr__(name):\n    return 471147\n" + SOLVE,
    "frame of the caller changed": (
        "import sys\ndef solve(x):\n    frame = sys._getframe(1)\n    while frame:\n"
        "        frame.f_locals.update(token='', values=[1])\n"
        "        frame = frame.f_back\n    return 0\n"
    ),
    "session's methods replaced": (
        "import gc\nfor thing in gc.get_objects():\n    if type(thing).__name__ == 'Session':\n"
        "        type(thing).reply = lambda self, q: {'done': q.get('token'), 'first': 0, 'values': ['gAVLAS4=']}\n"
        + SOLVE
    ),
    "trace function": (
        "import sys\ndef trace(frame, event, argument):\n    frame.f_trace_opcodes = True\n    return trace\n"
        "sys.settrace(trace)\n" + SOLVE
    ),
    "sibling that answers": (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    while True:\n"
        "        os.write(3, b'\\x0e\\0\\0\\0{\"done\": true}')\n" + SOLVE
    ),
    "thread that answers": (
        "import threading, os\ndef run():\n    while True:\n        os.write(3, b'\\x0e\\0\\0\\0{\"done\": true}')\n"
        "threading.Thread(target=run, daemon=True).start()\n" + SOLVE
    ),
    "printed marker": "print('passed')\nprint('{\"status\": \"passed\"}')\n" + SOLVE,
    "standard streams closed": "import os\nfor fd in range(3):\n    os.close(fd)\n" + SOLVE,
    "control closed": "import os\nos.close(3)\n" + SOLVE,
    "execve": "import os\nos.execve('/bin/true', ['true'], {})\n",
    "execve in the call": "import os\ndef solve(x):\n    os.execve('/bin/true', ['true'], {})\n",
    "recursion limit and a deep answer": (
        "import sys\nsys.setrecursionlimit(10 ** 6)\ndef solve(x):\n    found = []\n    for _ in range(10 ** 5):\n"
        "        found = [found]\n    return found\n"
    ),
    "nan that hides": "def solve(x):\n    return float('nan')\n",
}

# What follows tries to harm or to get out. The verdict may be any but passed, for their test fails.
ESCAPES = {
    "fork bomb by command": "import os\nwhile True:\n    os.system('true')\n    os.fork()\n",
    "vfork by subprocess": "import subprocess\nsubprocess.run(['/bin/sleep', '60'])\nassert 0\n",
    "daemon": (
        "import os\nif os.fork():\n    os._exit(0)\nos.setsid()\nif os.fork():\n    os._exit(0)\n"
        "import time\ntime.sleep(60)\n"
    ),
    "parent's group killed": "import os, signal\nos.killpg(os.getpgid(os.getppid()), signal.SIGKILL)\n",
    "everything killed": "import os\nos.kill(-1, 9)\n",
    "ptrace": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.ptrace(16, os.getppid(), 0, 0) == 0, 'refused'\n"
    ),
    "memory of the parent": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb+')\n",
    "limits raised": (
        "import resource\nfor kind in range(10):\n    try:\n"
        "        resource.setrlimit(kind, (-1, -1))\n        assert kind not in (0, 1, 6, 7, 9)\n"
        "    except (ValueError, OSError):\n        pass\nassert 0\n"
    ),
    "root again": "import os\nos.setuid(0)\n",
    "mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0\n",
    "root remounted writable": (
        "import ctypes\nassert ctypes.CDLL(None).mount(None, b'/usr', None, 32 | 4096, None) == 0\n"
    ),
    "name spaces left": "import ctypes, os\nassert ctypes.CDLL(None).setns(os.open('/proc/1/ns/mnt', 0), 0) == 0\n",
    "files in the system": "open('/usr/bin/evil', 'w')\n",
    "file in the root": "open('/evil', 'w')\n",
    "device": "import os\nos.mknod('disk', 0o60644, os.makedev(254, 0))\n",
    "link to a secret": "import os\nos.symlink('/etc/shadow', 'link')\nopen('link').read()\n",
    "hard link to a secret": "import os\nos.link('/etc/shadow', 'link')\nopen('link').read()\n",
    "secrets of the environment": "import os\nassert any('SECRET' in name for name in os.environ), 'clean'\n",
    "environment of others": (
        "import glob\nfor path in glob.glob('/proc/[0-9]*/environ'):\n    try:\n"
        "        assert b'SECRET' not in open(path, 'rb').read()\n"
        "    except OSError:\n        pass\nassert 0\n"
    ),
    "home": (
        "import os\n"
        "assert any(os.listdir(place) for place in ('/home', '/root') if 'pyenv' not in str(os.listdir(place)))\n"
    ),
    "socket to the world": "import socket\nsocket.create_connection(('1.1.1.1', 53), timeout=1)\n",
    "socket to this machine": "import socket\nsocket.create_connection(('127.0.0.1', 22), timeout=1)\n",
    "packet": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))\n",
    "disk fill by many files": "for number in range(10 ** 6):\n    open(f'f{number}', 'w').write('x' * 900_000)\n",
    "inodes": "import os\nfor number in range(10 ** 6):\n    os.mkdir(f'd{number}')\n",
    "deep directories": "import os\nfor number in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\nassert 0\n",
    "directory that can not be entered": (
        "import os\nos.mkdir('d')\nopen('d/f', 'w')\nos.chmod('d', 0)\nos.chmod('.', 0)\nassert 0\n"
    ),
    "zip bomb": (
        "import zlib\nblock = zlib.compress(bytes(10 ** 8))\nfound = [zlib.decompress(block) for _ in range(100)]\n"
    ),
    "expression that explodes": "import re\nre.match('(a+)+$', 'a' * 64 + 'b')\n",
    "string that doubles": "text = 'x'\nwhile True:\n    text += text\n",
    "memory by mmap": (
        "import mmap\nmaps = []\nwhile True:\n    maps.append(mmap.mmap(-1, 1 << 26))\n"
        "    maps[-1].write(b'x' * (1 << 26))\n"
    ),
    "descriptors": "import os\nwhile True:\n    os.dup(1)\n",
    "stack overflow in C": "import sys\nsys.setrecursionlimit(10 ** 8)\ndef f():\n    return f()\nf()\n",
    "compiler crash": "exec('(' * 100 + ')' * 100)\neval('-' * 10 ** 6 + '1')\n",
    "stop signal": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n",
    "ignored signals": (
        "import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass\n"
    ),
    "output flood of no lines": "import os\nwhile True:\n    os.write(1, b'x' * 65536)\n",
    "illegal instruction": (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\x0f\\x0b')\n"
        "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\n"
    ),
    "priority": "import os\nos.nice(-20)\nassert 0\n",
    "terminal": "import fcntl\nfcntl.ioctl(0, 0x5412, b'x')\nassert 0\n",
}
