package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/ollama/ollama/format"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/hub"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/runner"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// maxToken bounds what is read as a token.
const maxToken = 4 << 10

// The commands of this file ask the Hugging Face hub from this machine, without a server: tokens stay here, and do not
// travel to a server on another machine.

func (a *app) loginCommand() *cobra.Command {
	var fromStdin bool
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Log in to Hugging Face, for gated and private models",
		Long: "Log in to Hugging Face with an access token, for gated and private models.\n\n" +
			"The token is asked for and not shown, or read from standard input. Tokens are made at\n" +
			"https://huggingface.co/settings/tokens; one that may read is enough. It is checked, and kept where\n" +
			"Hugging Face's own tools keep it, for all of them ($HF_HOME/token). HF_TOKEN wins over it.\n" +
			"A server on another machine has a login of its own.",
		Example: "  ollmlx login\n  ollmlx login --token-stdin < token.txt",
		Args:    cobra.NoArgs,
		RunE: a.hubCommand(func(ctx context.Context, c *hub.Client, _ []string) error {
			token, err := a.readToken(fromStdin)
			if err != nil {
				return err
			}
			account, err := c.Login(ctx, token)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "Logged in to %s as %s\n", account.Endpoint, account.Name)
			if account.FromEnvironment {
				fmt.Fprintln(a.err, "Warning: HF_TOKEN is set and wins over this login")
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&fromStdin, "token-stdin", false, "read the token from standard input")
	return cmd
}

// readToken asks for a token without an echo, or reads a line of standard input.
func (a *app) readToken(fromStdin bool) (string, error) {
	in, isFile := a.in.(*os.File)
	if a.inTTY && isFile && !fromStdin {
		return a.typedToken(in)
	}
	line, err := bufio.NewReader(io.LimitReader(a.in, maxToken)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	return strings.TrimSpace(line), nil
}

// typedToken asks for a token on a terminal. The echo is off before the question appears, so that not even what is typed
// or pasted at once is shown.
func (a *app) typedToken(in *os.File) (string, error) {
	before, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return "", fmt.Errorf("the terminal's echo cannot be turned off: %w; use --token-stdin", err)
	}
	defer term.Restore(int(in.Fd()), before)
	terminal := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{in, a.err}, "")
	token, err := terminal.ReadPassword("Token (from https://huggingface.co/settings/tokens, it is not shown): ")
	if errors.Is(err, io.EOF) {
		// Ctrl-C and Ctrl-D.
		return "", errInterrupted
	}
	return strings.TrimSpace(token), err
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "Remove the login to Hugging Face",
		Args:  cobra.NoArgs,
		RunE: a.hubCommand(func(ctx context.Context, c *hub.Client, _ []string) error {
			r, err := c.Logout(ctx)
			if err != nil {
				return err
			}
			if r.FromEnvironment {
				return errors.New("HF_TOKEN is set, so that you are still logged in; unset it")
			}
			fmt.Fprintln(a.out, "Logged out")
			return nil
		}),
	}
}

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "Show who is logged in to Hugging Face",
		Args:  cobra.NoArgs,
		RunE: a.hubCommand(func(ctx context.Context, c *hub.Client, _ []string) error {
			account, err := c.WhoAmI(ctx)
			if err != nil {
				return err
			}
			rows := [][]string{{"name", account.Name}}
			if account.FullName != "" {
				rows = append(rows, []string{"full name", account.FullName})
			}
			if len(account.Organizations) > 0 {
				rows = append(rows, []string{"organizations", strings.Join(account.Organizations, ", ")})
			}
			source := "login"
			if account.FromEnvironment {
				source = "HF_TOKEN"
			}
			return writeTable(a.out, "", append(rows, []string{"hub", account.Endpoint}, []string{"token", source}))
		}),
	}
}

func (a *app) searchCommand() *cobra.Command {
	var q runnerpb.SearchRequest
	var all bool
	cmd := &cobra.Command{
		Use:   "search WORD...",
		Short: "Search Hugging Face for models",
		Long: "Search Hugging Face for models in MLX format whose names contain the words, the most downloaded first.\n" +
			"What is found can be pulled and run by the name that is shown.",
		Example: "  ollmlx search qwen3 4bit\n  ollmlx search --all --limit 50 gemma",
		Args:    cobra.MinimumNArgs(1),
		RunE: a.hubCommand(func(ctx context.Context, c *hub.Client, args []string) error {
			q.Query, q.Mlx = strings.Join(args, " "), !all
			models, err := c.Search(ctx, &q)
			if err != nil {
				return err
			}
			if len(models) == 0 {
				return fmt.Errorf("no model on the hub matches %q%s", q.Query, map[bool]string{false: "; --all looks beyond MLX format"}[all])
			}
			return writeTable(a.out, "", searchRows(models))
		}),
	}
	cmd.Flags().Uint32Var(&q.Limit, "limit", 20, "most models to show")
	cmd.Flags().BoolVar(&all, "all", false, "models of other formats, too")
	return cmd
}

func searchRows(models []*runnerpb.HubModel) [][]string {
	rows := [][]string{{"NAME", "DOWNLOADS", "LIKES", "UPDATED"}}
	for _, m := range models {
		name := m.Repository
		if n, err := modelname.Parse(modelname.HubHost + "/" + m.Repository); err == nil {
			name = strings.TrimSuffix(modelname.Display(n), ":"+modelname.DefaultTag)
		}
		updated := ""
		if m.LastModified > 0 {
			updated = format.HumanTime(time.Unix(m.LastModified, 0), "")
		}
		if m.Gated {
			updated += " (gated)"
		}
		rows = append(rows, []string{name, format.HumanNumber(m.Downloads), format.HumanNumber(m.Likes), strings.TrimSpace(updated)})
	}
	return rows
}

// hubCommand wraps the body of a command that asks the hub: Ctrl-C ends it.
func (a *app) hubCommand(body func(ctx context.Context, c *hub.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		ctx, release := interruptible(cmd.Context())
		defer release()
		python, err := a.config.FindPython()
		if err != nil {
			return err
		}
		level := max(a.config.LogLevel, slog.LevelWarn)
		if a.config.LogLevel < slog.LevelInfo {
			level = a.config.LogLevel
		}
		log := slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level}))
		dir, err := runner.NewRuntimeDir(runner.DirParams{Logger: log})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, dir.Close()) }()
		c := hub.New(hub.Params{
			Runner: runner.Params{Command: []string{python.Path, "-m", "ollmlx.runner"}, Dir: dir, Env: a.config.HubEnv, Logger: log},
			Logger: log,
		})
		defer c.Close()
		err = body(ctx, c, args)
		if err != nil && (ctx.Err() != nil || errors.Is(err, errdefs.ErrCanceled)) {
			return errInterrupted
		}
		return err
	}
}
