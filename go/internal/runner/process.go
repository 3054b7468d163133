package runner

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// logDrain bounds the wait for the end of the log after the process has ended: a process that it started and that left
// its group could hold the pipes open for ever.
const logDrain = 500 * time.Millisecond

// process is one child process in a group of its own with the pipes of the protocol: lifeline, handshake and log.
type process struct {
	cmd  *exec.Cmd
	logs *logs

	// lifeline is never written to. While it is open the runner knows that its host lives.
	lifeline *os.File
	// handshake is where the runner announces itself.
	handshake *os.File
	outputs   []*os.File
	pumps     sync.WaitGroup

	// exited is closed when the process has been waited for and its group killed; state is set then.
	exited chan struct{}
	state  *os.ProcessState
}

type processParams struct {
	command []string
	dir     string
	env     []string
	logger  *slog.Logger
}

// startProcess executes the command and begins to read its log.
func startProcess(p processParams) (*process, error) {
	path, err := executable(p.command[0])
	if err != nil {
		return nil, err
	}
	proc := &process{logs: newLogs(p.logger), exited: make(chan struct{})}
	proc.cmd = &exec.Cmd{
		Path: path,
		Args: p.command,
		Env:  p.env,
		Dir:  p.dir,
		// Stdin nil is /dev/null. A group of its own keeps a terminal's Ctrl-C for the host.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	theirs, err := proc.openPipes()
	// After the fork the child has its own copies. A copy kept here would hide the end of file that tells of its end.
	defer func() { closeAll(theirs) }()
	if err == nil {
		err = proc.cmd.Start()
	}
	if err != nil {
		closeAll(proc.ours())
		return nil, errdefs.New(errdefs.ErrUnavailable, "cannot start the runner %s: %w", path, err)
	}

	for _, pipe := range proc.outputs {
		proc.pumps.Go(func() { proc.logs.pump(pipe) })
	}
	go proc.wait()
	return proc, nil
}

// openPipes makes the four pipes, hands one end of each to the command and returns those ends. os.Pipe makes both ends
// close-on-exec, so no other child of the host inherits a lifeline.
func (p *process) openPipes() (theirs []*os.File, err error) {
	open := func() (r, w *os.File) {
		if err != nil {
			return nil, nil
		}
		r, w, err = os.Pipe()
		return r, w
	}
	lifelineR, lifelineW := open()
	handshakeR, handshakeW := open()
	stdoutR, stdoutW := open()
	stderrR, stderrW := open()

	p.lifeline, p.handshake = lifelineW, handshakeR
	p.outputs = []*os.File{stdoutR, stderrR}
	p.cmd.Stdout, p.cmd.Stderr = stdoutW, stderrW
	p.cmd.ExtraFiles = []*os.File{lifelineR, handshakeW} // fd 3 and fd 4
	return []*os.File{lifelineR, handshakeW, stdoutW, stderrW}, err
}

// wait reaps the process, kills what is left of its group and reports its end.
func (p *process) wait() {
	// The error repeats what the state tells.
	_ = p.cmd.Wait()
	p.state = p.cmd.ProcessState
	// A group's id is not given to another process while the group has members.
	p.signal(syscall.SIGKILL)
	close(p.exited)
}

// close releases what the host holds of an exited process; afterwards the log is complete.
func (p *process) close() {
	drained := make(chan struct{})
	go func() { p.pumps.Wait(); close(drained) }()
	timer := time.NewTimer(logDrain)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
	}
	closeAll(p.ours())
	// Closing the pipes has ended what still read from them.
	<-drained
}

// signal sends a signal to the process and all others of its group.
func (p *process) signal(sig syscall.Signal) {
	// It fails when the group is gone, which is what every caller is after.
	_ = syscall.Kill(-p.pid(), sig)
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// exitedWithin waits for the end of the process for d at most, and less if hurry is closed.
func (p *process) exitedWithin(d time.Duration, hurry <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.exited:
		return true
	case <-timer.C:
	case <-hurry:
	}
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

func (p *process) ours() []*os.File {
	return append([]*os.File{p.lifeline, p.handshake}, p.outputs...)
}

func closeAll(files []*os.File) {
	for _, file := range files {
		// A file that was never opened is nil, which Close tolerates.
		_ = file.Close()
	}
}

// executable finds a program as a shell would and returns its absolute path, because the runner's working directory is
// not the host's.
func executable(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		err = nil
	}
	if err == nil {
		path, err = filepath.Abs(path)
	}
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return "", errdefs.New(errdefs.ErrPrecondition,
			"cannot start a runner: %s not found; set OLLMLX_PYTHON to the Python that has ollmlx installed", name)
	default:
		return "", errdefs.New(errdefs.ErrPrecondition,
			"cannot start a runner with %s: %w; set OLLMLX_PYTHON to the Python that has ollmlx installed", name, err)
	}
}

// exitReason tells how a process ended: "exit code 70", "killed by SIGKILL".
func exitReason(state *os.ProcessState) string {
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		return fmt.Sprintf("exit code %d", state.ExitCode())
	}
	reason := "killed by " + cmp.Or(unix.SignalName(status.Signal()), status.Signal().String())
	if status.CoreDump() {
		reason += ", core dumped"
	}
	return reason
}
