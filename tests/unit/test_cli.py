import io
from datetime import datetime

from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.cli.call import read_json
from pelotontx.cli.shell import HELP, Exit, Shell
from pelotontx.cli.terminal import CommandCompleter
from pelotontx.cli.texts import printable, with_hint
from pelotontx.errors import Disconnected, LocalProtocolError


class ReadJSONTests(SynchronousTestCase):
    def refusal(self, text, stdin=""):
        with self.assertRaises(LocalProtocolError) as raised:
            read_json(text, io.StringIO(stdin))
        return str(raised.exception)

    def test_argument_is_decoded(self):
        self.assertEqual(read_json('{"a": [1]}', io.StringIO()), {"a": [1]})

    def test_dash_reads_stdin(self):
        self.assertEqual(read_json("-", io.StringIO('"x"\n')), "x")

    def test_object_without_quotes_gets_a_hint_about_the_shell(self):
        self.assertIn("single quotes", self.refusal("{a: 1}"))

    def test_bare_word_gets_a_hint_with_the_quoted_word(self):
        self.assertIn("""'"it"'""", self.refusal("it"))

    def test_bad_stdin_gets_no_hint(self):
        message = self.refusal("-", "{")
        self.assertIn("stdin is not JSON", message)
        self.assertNotIn("hint", message)


class ShellTests(SynchronousTestCase):
    def setUp(self):
        self.lines = []
        self.shell = self.make()

    def make(self, **arguments):
        return Shell(
            reactor=Clock(),
            show=lambda *parts: self.lines.append(parts),
            url="ws://server.test/ws",
            now=lambda: datetime(2026, 1, 2, 3, 4, 5, 678901),
            **arguments,
        )

    def run_line(self, line):
        return self.successResultOf(Deferred.fromCoroutine(self.shell.run(line)))

    def test_help_has_every_command(self):
        described = {line.split()[0] for line in HELP.splitlines()}
        self.assertLessEqual(set(self.shell.commands), described)

    def test_empty_lines_and_comments_do_nothing(self):
        for line in ("", "   ", "# call u"):
            self.assertTrue(self.run_line(line))
        self.assertEqual(self.lines, [])

    def test_unknown_command_is_told(self):
        self.assertFalse(self.run_line("dance"))
        self.assertEqual(self.lines, [("", "error", "no command dance; try help")])

    def test_commands_need_a_connection(self):
        for line in ("call u", "pub c", "sub c", "unsb c", "send x", "close", "disconnect"):
            self.assertFalse(self.run_line(line))
            self.assertIn("no connection", self.lines[-1][2])

    def test_connection_that_does_not_exist_is_told(self):
        self.assertFalse(self.run_line("call 7 u"))
        self.assertEqual(self.lines[-1][2], "no connection 7")

    def test_unusable_url_is_told(self):
        self.assertFalse(self.run_line("connect http://x"))
        self.assertIn("not a ws:// or wss:// URL", self.lines[-1][2])
        self.assertEqual(self.shell.states, [])

    def test_rand_prints_a_uuid(self):
        self.assertTrue(self.run_line("rand"))
        self.assertEqual(len(self.lines[0][2]), 36)

    def test_exit_leaves(self):
        self.failureResultOf(Deferred.fromCoroutine(self.shell.run("exit")), Exit)

    def test_time_stands_before_each_line(self):
        self.shell = self.make(timestamp=True)
        self.run_line("dance")
        self.assertEqual(self.lines[0][0], "2026-01-02T03:04:05.678 ")

    def test_control_characters_do_not_reach_the_terminal(self):
        self.run_line("a\x1b[2J\x9b")
        self.assertEqual(self.lines[0][2], "no command a\\x1b[2J\\x9b; try help")

    def test_timeout_of_a_call_needs_json_behind_it(self):
        self.assertIn("call [N] URI [[TIMEOUT] JSON]", HELP)


class TextsTests(SynchronousTestCase):
    def test_what_a_terminal_obeys_is_escaped_and_other_scripts_are_not(self):
        self.assertEqual(
            printable("a\x1b[2J\x9b\n\u202eb äж中"), "a\\x1b[2J\\x9b\\x0a\\x202eb äж中"
        )

    def test_what_may_help_stands_behind_an_error(self):
        for text, hint in (
            ("ws://h/ws: Connection was refused by other side: 111", "is the server running?"),
            ("ws://h/x: WebSocket connection upgrade failed [404]: Not Found", "ws://HOST:PORT/ws"),
            ("ws://h/ws: WebSocket connection upgrade failed [401]: No", "a login"),
            ("ws://h:443/ws: the server dropped the connection", "wss://HOST:PORT/ws"),
            ("wss://h:80/ws: SSL error: wrong version number (in )", "speak no TLS"),
        ):
            self.assertTrue(with_hint(Disconnected(text)).startswith(text))
            self.assertIn(hint, with_hint(Disconnected(text)))
        self.assertEqual(with_hint("the server dropped\x1b"), "the server dropped\\x1b")


class CompletionTests(SynchronousTestCase):
    def setUp(self):
        self.shell = Shell(reactor=Clock(), show=lambda *_: None, url="ws://server.test/ws")
        self.shell.seen["test.echo"] = self.shell.seen["chat"] = None

    def completions(self, text):
        completer = CommandCompleter(self.shell)
        found = completer.get_completions(Document(text), CompleteEvent())
        return [completion.text for completion in found]

    def test_first_word_is_a_command(self):
        self.assertEqual(self.completions("p"), ["pub ", "psub ", "punsb "])

    def test_other_words_are_names_that_were_used_newest_first(self):
        self.assertEqual(self.completions("call "), ["chat ", "test.echo "])
        self.assertEqual(self.completions("call 1 te"), ["test.echo "])
