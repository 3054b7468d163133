package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/config"
)

// How long a server that a command starts for itself may take, and how often it is asked meanwhile.
const (
	startTimeout = 30 * time.Second
	stopTimeout  = 15 * time.Second
	startPoll    = 20 * time.Millisecond
)

// lifelineFD is the number that the first of exec.Cmd's extra files has in the child.
const lifelineFD = 3

// connectOrStart returns a client of the server, which it starts on this machine if nothing listens
// there. The server that it started ends with stop, or with this process, however that ends.
func (a *app) connectOrStart(ctx context.Context) (client *api.Client, stop func() error, err error) {
	nothing := func() error { return nil }
	client, err = a.connect(ctx)
	if err == nil {
		return client, nothing, nil
	}
	if !errors.Is(err, errNoServer) || !a.config.Host.IsLocal() || a.config.Host.Port == "0" {
		return nil, nil, err
	}
	fmt.Fprintf(a.err, "no server at %s: starting one until this command ends\n", a.config.Host.URL().Host)
	child, err := startServer(a.serverCommand, a.config)
	if err != nil {
		return nil, nil, fmt.Errorf("starting a server: %w", err)
	}
	client = a.client()
	if err := child.waitReady(ctx, client); err != nil {
		return nil, nil, errors.Join(err, child.stop())
	}
	return client, child.stop, nil
}

// childServer is a server with the life of this process: it holds the read end of a pipe whose write
// end only this process has, and stops when the kernel closes that.
type childServer struct {
	cmd      *exec.Cmd
	lifeline *os.File
	log      *tail
	done     chan struct{} // closed when the process has ended
	err      error         // how it ended; read after done
}

func startServer(command []string, c config.Config) (*childServer, error) {
	if len(command) == 0 {
		exe, err := os.Executable()
		if err != nil {
			return nil, err
		}
		command = []string{exe, "serve"}
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	s := &childServer{lifeline: write, log: &tail{limit: 8 << 10}, done: make(chan struct{})}
	s.cmd = exec.Command(command[0], command[1:]...)
	s.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", config.LifelineVar, lifelineFD))
	s.cmd.ExtraFiles = []*os.File{read}
	s.cmd.Stderr = s.log
	if c.LogLevel < 0 { // whoever debugs wants to see the server's log as it comes
		s.cmd.Stderr = os.Stderr
	}
	// A group of its own: Ctrl-C is for the answer that is being printed, not for the server.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.cmd.WaitDelay = time.Second
	if err := s.cmd.Start(); err != nil {
		write.Close()
		return nil, err
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	return s, nil
}

// waitReady returns when the server answers, or when it never will.
func (s *childServer) waitReady(ctx context.Context, client *api.Client) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ticker := time.NewTicker(startPoll)
	defer ticker.Stop()
	for {
		if client.Heartbeat(ctx) == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-s.done:
			// Another command may have started a server at the same moment and won the port.
			if client.Heartbeat(ctx) == nil {
				return nil
			}
			return fmt.Errorf("the server ended while starting: %s", s.log.lastLines())
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("the server did not answer within %v: %s", startTimeout, s.log.lastLines())
			}
			return ctx.Err()
		}
	}
}

// stop ends the server and waits for it.
func (s *childServer) stop() error {
	s.lifeline.Close()
	select {
	case <-s.done:
		return nil
	case <-time.After(stopTimeout):
	}
	// Its runners have lifelines of their own, so killing it leaves nothing behind.
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping the server: %w", err)
	}
	<-s.done
	return fmt.Errorf("the server did not stop within %v and was killed", stopTimeout)
}

// tail keeps the end of what is written to it.
type tail struct {
	mu    sync.Mutex
	limit int
	buf   []byte
}

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if excess := len(t.buf) - t.limit; excess > 0 {
		t.buf = append(t.buf[:0], t.buf[excess:]...)
	}
	return len(p), nil
}

// lastLines is what error messages quote.
func (t *tail) lastLines() string {
	const lines = 5
	t.mu.Lock()
	defer t.mu.Unlock()
	all := strings.Split(strings.TrimSpace(string(t.buf)), "\n")
	if len(all) == 1 && all[0] == "" {
		return "it wrote no log"
	}
	return "\n" + strings.Join(all[max(0, len(all)-lines):], "\n")
}
