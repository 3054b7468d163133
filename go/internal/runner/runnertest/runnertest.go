// Package runnertest is a runner without a model, for tests of whatever has runners under it.
//
// The idea: a test binary executes itself as the runner, so that a real process with the real handshake, socket, lifeline
// and signals is under test, and Options tells it how to misbehave. What it generates is deterministic: the prompt's own
// words, one per step, or the deltas of Options.Answer.
//
// Use: call Main first in TestMain, and give Command(t, Options{...}) to runner.Params.
package runnertest

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"
)

// marker is the first argument that makes a test binary a runner; it carries the options.
const marker = "ollmlx-fake-runner"

// Where a runner can crash.
const (
	// CrashAtStart: before the handshake.
	CrashAtStart = "start"
	// CrashAtReady: right after the handshake.
	CrashAtReady = "ready"
	// CrashAtLoad: in the middle of Load.
	CrashAtLoad = "load"
	// CrashAtStep: in the middle of generation, after Options.AfterSteps.
	CrashAtStep = "step"
	// CrashAtShutdown: instead of an answer to Shutdown.
	CrashAtShutdown = "shutdown"
)

// Faults of the handshake.
const (
	// HandshakeNone: nothing is ever written.
	HandshakeNone = "none"
	// HandshakeClosed: the pipe is closed without a line, and the process lives on.
	HandshakeClosed = "closed"
	// HandshakeGarbage: a line that is not JSON.
	HandshakeGarbage = "garbage"
	// HandshakeEndless: bytes without a line's end.
	HandshakeEndless = "endless"
	// HandshakeProtocol: a protocol that no host knows.
	HandshakeProtocol = "protocol"
	// HandshakeEngine: another engine than was asked for.
	HandshakeEngine = "engine"
)

// Options tells a fake runner how to behave. The zero value behaves well.
type Options struct {
	// StartDelay passes before the handshake.
	StartDelay time.Duration
	// Handshake is a fault of the handshake.
	Handshake string
	// NoSocket: the handshake is right, but nothing listens.
	NoSocket bool

	// Crash is where the process ends without a word, with ExitCode, or by SIGKILL if that is 0.
	Crash    string
	ExitCode int
	// AfterSteps is how many steps CrashAtStep, HangSteps and BreakSession wait for.
	AfterSteps int

	// Stdout and Stderr are written at the start, LogBytes bytes of a line without an end after them.
	Stdout, Stderr string
	LogBytes       int
	// LogPID: the process logs its pid as "pid 4711", before StartDelay.
	LogPID bool

	// LoadSteps is how many progress messages Load sends, LoadInterval apart.
	LoadSteps    int
	LoadInterval time.Duration
	// LoadHangs: after its progress messages, Load repeats the last one for ever.
	LoadHangs bool
	// LoadFails is the failure that Load ends with.
	LoadFails *Failure
	// WeightBytes, Context and Capabilities appear in the loaded model's info; Context is 2048 if 0, and the capability
	// "completion" is there if none is named.
	WeightBytes  uint64
	Context      uint32
	Capabilities []string

	// Interval passes between two steps. 0: none, the events come as fast as they can be sent.
	Interval time.Duration
	// Spread divides the rows into so many groups, one of which advances in each step, so that events come evenly and not
	// all at once. 0: all rows advance.
	Spread int
	// Clock: each delta is the time of its making, in Unix nanoseconds.
	Clock bool
	// Answer replaces the echo of the prompt: one delta per step.
	Answer []Delta
	// Repeat is how many times the answer is given in a row; 0 is once.
	Repeat int
	// Fails is the failure that each request ends with after its answer.
	Fails *Failure
	// HangSteps: after AfterSteps steps nothing is generated any more.
	HangSteps bool
	// BreakSession: the session ends with an error after AfterSteps steps, and the process lives on.
	BreakSession bool

	// ShutdownHangs: Shutdown is never answered.
	ShutdownHangs bool
	// ShutdownLingers: Shutdown is answered, but the process does not end.
	ShutdownLingers bool
	// IgnoresTerm: SIGTERM is ignored.
	IgnoresTerm bool
	// IgnoresLifeline: the process outlives its host. Only a test of the test needs it.
	IgnoresLifeline bool
	// Child: the process starts a child of its own, which outlives it unless its group is killed, and logs its pid as
	// "child 4711".
	Child bool
}

// Delta is one step of an answer.
type Delta struct {
	Content, Thinking string
	ToolCalls         []ToolCall
}

// ToolCall is a call of a tool with its arguments as JSON.
type ToolCall struct{ ID, Name, Arguments string }

// Failure is a status with which a call or a request ends.
type Failure struct {
	Code    int32
	Message string
}

// Command returns the command that runs this test binary as a runner. The test's TestMain must call Main first.
func Command(t testing.TB, o Options) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return []string{exe, marker, string(data)}
}

// Main runs a runner and exits if the process was started by Command; else it returns. It must be the first thing that
// TestMain does.
func Main() {
	if len(os.Args) < 3 || os.Args[1] != marker {
		return
	}
	var o Options
	if err := json.Unmarshal([]byte(os.Args[2]), &o); err != nil {
		fmt.Fprintln(os.Stderr, "fake runner:", err)
		exit(2)
	}
	flags := flag.NewFlagSet(marker, flag.ExitOnError)
	engine := flags.String("engine", "", "what to announce")
	socket := flags.String("socket", "", "where to listen")
	_ = flags.Bool("warm", false, "without effect: there is nothing to warm up")
	_ = flags.String("log-level", "", "without effect: what is logged is in the options")
	// ExitOnError: a bad flag exits with code 2, as the protocol has it.
	_ = flags.Parse(os.Args[3:])
	exit(run(o, *engine, *socket))
}
