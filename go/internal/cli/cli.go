// Package cli is the command line: what users type, and how answers look.
//
// Every command but serve, cache, doctor and those that ask the Hugging Face hub is a client of the HTTP API and knows no more than any other
// client, so that it works against a server on another machine, or against Ollama, just as well.
// Names, flags, texts and columns are Ollama's wherever Ollama has the command.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/ollama/ollama/api"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/ollmlx/ollmlx/go/internal/config"
)

// Exit codes of the program.
const (
	ExitOK          = 0
	ExitError       = 1
	ExitInterrupted = 130 // as a shell reports a program that Ctrl-C ended
)

// errInterrupted means that the user stopped the command; there is nothing to report.
var errInterrupted = errors.New("interrupted")

// errReported means that the command failed and has said so already.
var errReported = errors.New("reported")

// Params is what the command line stands on.
type Params struct {
	Config   config.Config
	Warnings []config.Warning

	// In, Out and Err default to the process's own.
	In       io.Reader
	Out, Err io.Writer
}

// Run executes the command line args and returns the program's exit code.
func Run(ctx context.Context, p Params, args []string) int {
	a := newApp(p)
	root := a.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, errInterrupted):
		return ExitInterrupted
	case !errors.Is(err, errReported):
		fmt.Fprintln(a.err, "Error:", errorText(err))
	}
	return ExitError
}

// errorText is what users read. The client puts the HTTP status before some messages of the server and
// not before others; the message says it all.
func errorText(err error) string {
	var denied api.AuthorizationError
	if errors.As(err, &denied) {
		return "the server wants an API key that it knows; set OLLMLX_API_KEY to it"
	}
	var status api.StatusError
	if errors.As(err, &status) && status.ErrorMessage != "" {
		return strings.ReplaceAll(err.Error(), status.Error(), status.ErrorMessage)
	}
	return err.Error()
}

// app is what all commands share.
type app struct {
	config   config.Config
	warnings []config.Warning

	in                    io.Reader
	out, err              io.Writer
	inTTY, outTTY, errTTY bool

	serverCommand []string // what starts a server; this program's own serve if empty
}

func newApp(p Params) *app {
	a := &app{config: p.Config, warnings: p.Warnings, in: p.In, out: p.Out, err: p.Err}
	if a.in == nil {
		a.in = os.Stdin
	}
	if a.out == nil {
		a.out = os.Stdout
	}
	if a.err == nil {
		a.err = os.Stderr
	}
	a.inTTY, a.outTTY, a.errTTY = isTerminal(a.in), isTerminal(a.out), isTerminal(a.err)
	return a
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// width is the number of columns of the terminal, 0 if the output is none.
func (a *app) width() int {
	f, ok := a.out.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// noSuchCommand is asked where the first argument is the name of no command.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "\"ollmlx --help\" lists them"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return fmt.Errorf("unknown command %q for %q; %s", args[0], cmd.CommandPath(), hint)
}

func (a *app) rootCommand() *cobra.Command {
	var showVersion bool
	root := &cobra.Command{
		Use:           "ollmlx",
		Short:         "Run large language models on MLX, with Ollama's API",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noSuchCommand,
		// How many letters may differ.
		SuggestionsMinimumDistance: 2,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			if cmd.Name() == serveName { // logs them
				return
			}
			for _, w := range a.warnings {
				fmt.Fprintln(a.err, "Warning:", w)
			}
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if showVersion {
				return a.showVersion(cmd.Context())
			}
			return cmd.Help()
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.Flags().BoolVarP(&showVersion, "version", "v", false, "show version information")
	root.AddCommand(
		a.serveCommand(),
		a.createCommand(),
		a.showCommand(),
		a.runCommand(),
		a.stopCommand(),
		a.pullCommand(),
		a.pushCommand(),
		a.searchCommand(),
		a.loginCommand(),
		a.logoutCommand(),
		a.whoamiCommand(),
		a.listCommand(),
		a.psCommand(),
		a.copyCommand(),
		a.removeCommand(),
		a.cacheCommand(),
		a.doctorCommand(),
	)
	root.AddCommand(absentCommands()...)
	return root
}

// interruptible gives a context that Ctrl-C and SIGTERM end; a second one ends the process at once, so that a command
// that hangs can be stopped. Signals are kept in a channel from the first on, so that none is lost that follows closely.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	signals, released := make(chan os.Signal, 2), make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
			cancel()
		case <-released:
			return
		}
		select {
		case s := <-signals:
			signal.Reset(os.Interrupt, syscall.SIGTERM)
			if number, ok := s.(syscall.Signal); ok {
				_ = syscall.Kill(os.Getpid(), number)
			}
		case <-released:
		}
	}()
	return ctx, sync.OnceFunc(func() {
		signal.Stop(signals)
		close(released)
		cancel()
	})
}
