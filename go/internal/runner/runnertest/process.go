package runnertest

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

const (
	exitNoHost   = 3
	exitInternal = 70
	maxMessage   = 512 << 20
)

// run is the runner's main function; it returns the exit code.
func run(o Options, engine, socket string) int {
	lifeline, handshake := os.NewFile(3, "lifeline"), os.NewFile(4, "handshake")
	if _, err := lifeline.Stat(); err != nil {
		fmt.Fprintln(os.Stderr, "fake runner: fd 3 is not open")
		return exitNoHost
	}
	if !o.IgnoresLifeline {
		go func() {
			_, _ = lifeline.Read(make([]byte, 1))
			exit(0)
		}()
	}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)

	if o.Child {
		startChild()
	}
	writeLogs(o)
	time.Sleep(o.StartDelay)
	o.crashAt(CrashAtStart)

	syscall.Umask(0o077)
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
	service := newService(o)
	runnerpb.RegisterRunnerServer(server, service)
	if !o.NoSocket {
		listener, err := net.Listen("unix", socket)
		if err != nil {
			fmt.Fprintln(os.Stderr, "fake runner:", err)
			return exitInternal
		}
		go server.Serve(listener)
	}
	announce(o, engine, handshake)
	o.crashAt(CrashAtReady)

	stopped := service.stopped
	for {
		select {
		case <-stopped:
			if o.ShutdownLingers {
				stopped = nil
				continue
			}
			server.GracefulStop()
			return 0
		case <-terminated:
			if o.IgnoresTerm {
				continue
			}
			server.Stop()
			return 0
		}
	}
}

// crashAt ends the process if this is the point at which it is to crash.
func (o Options) crashAt(point string) {
	if o.Crash != point {
		return
	}
	if o.ExitCode != 0 {
		exit(o.ExitCode)
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func writeLogs(o Options) {
	fmt.Fprint(os.Stdout, o.Stdout)
	fmt.Fprint(os.Stderr, o.Stderr)
	if o.LogPID {
		fmt.Fprintln(os.Stderr, "pid", os.Getpid())
	}
	if o.LogBytes > 0 {
		fmt.Fprintln(os.Stderr, strings.Repeat("x", o.LogBytes))
	}
}

// startChild starts a process in this one's group that holds its standard error open.
func startChild() {
	child := exec.Command("sleep", "600")
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "fake runner:", err)
		exit(exitInternal)
	}
	fmt.Fprintln(os.Stderr, "child", child.Process.Pid)
}

func announce(o Options, engine string, pipe *os.File) {
	hello := map[string]any{
		"protocol": 1, "api": "ollmlx.runner.v1", "engine": engine, "pid": os.Getpid(),
		"versions": map[string]string{"fake": "1"},
	}
	switch o.Handshake {
	case HandshakeNone:
		return
	case HandshakeClosed:
		pipe.Close()
		return
	case HandshakeGarbage:
		fmt.Fprintln(pipe, "INFO: Application startup complete.")
		return
	case HandshakeEndless:
		for {
			if _, err := pipe.WriteString(strings.Repeat("x", 4096)); err != nil {
				return
			}
		}
	case HandshakeProtocol:
		hello["protocol"] = 99
	case HandshakeEngine:
		hello["engine"] = "other"
	}
	line, err := json.Marshal(hello)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(pipe, "%s\n", line)
	pipe.Close()
}

// exit ends the process at once. os.Exit would first wait a second in a binary with the race detector.
func exit(code int) { syscall.Exit(code) }
