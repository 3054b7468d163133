package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/spf13/cobra"

	"github.com/ollmlx/ollmlx/go/internal/server"
	"github.com/ollmlx/ollmlx/go/internal/version"
)

// errNoServer means that nothing listens where the server should.
var errNoServer = errors.New("could not connect to ollmlx server, run 'ollmlx serve' to start it")

// completionTimeout bounds what a shell waits for when the user presses Tab.
const completionTimeout = time.Second

func (a *app) client() *api.Client {
	return api.NewClient(a.config.Host.URL(), a.http())
}

// http returns what all requests to the server go through.
func (a *app) http() *http.Client {
	t := transport{host: a.config.Host.URL().Host}
	if len(a.config.APIKeys) > 0 {
		t.key = a.config.APIKeys[0]
	}
	return &http.Client{Transport: t}
}

// transport adds to requests to one host, and not to those that a redirect leads elsewhere, the API key if there is one
// and the wish to be told how loads go.
type transport struct{ host, key string }

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == t.host {
		r = r.Clone(r.Context())
		r.Header.Set(server.LoadHeader, "progress")
		if t.key != "" {
			r.Header.Set("Authorization", "Bearer "+t.key)
		}
	}
	return http.DefaultTransport.RoundTrip(r)
}

// connect returns a client of a server that answers.
func (a *app) connect(ctx context.Context) (*api.Client, error) {
	client := a.client()
	if err := client.Heartbeat(ctx); err != nil {
		return nil, a.connectError(ctx, err)
	}
	return client, nil
}

func (a *app) connectError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return errInterrupted
	case errors.Is(err, syscall.ECONNREFUSED):
		return errNoServer
	}
	// The URL in the client's error names the method and route, which say nothing to users.
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	return fmt.Errorf("could not connect to the server at %s: %w", a.config.Host.URL(), err)
}

// clientCommand wraps the body of a command that needs a server: Ctrl-C ends its requests.
func (a *app) clientCommand(body func(ctx context.Context, client *api.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, release := interruptible(cmd.Context())
		defer release()
		client, err := a.connect(ctx)
		if err != nil {
			return err
		}
		err = body(ctx, client, args)
		if err != nil && ctx.Err() != nil {
			return errInterrupted
		}
		return err
	}
}

func isStatus(err error, code int) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.StatusCode == code
}

// serverVersions asks a server who it is. Ollama's field names the Ollama release that the API follows; ours,
// which Ollama lacks, names the program.
func (a *app) serverVersions(ctx context.Context) (api, program string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.config.Host.URL().JoinPath("/api/version").String(), nil)
	if err != nil {
		return "", "", err
	}
	resp, err := a.http().Do(req)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	var body struct {
		Version string `json:"version"`
		Ollmlx  string `json:"ollmlx"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 1<<16)).Decode(&body); err != nil {
		return "", "", err
	}
	return body.Version, body.Ollmlx, nil
}

// showVersion tells the version of the server, and this program's own where that is another.
func (a *app) showVersion(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	apiVersion, program, err := a.serverVersions(ctx)
	switch {
	case err != nil:
		fmt.Fprintf(a.out, "ollmlx version is %s\n", version.Version)
		fmt.Fprintln(a.out, "Warning: could not connect to a running ollmlx server")
	case program == "":
		fmt.Fprintf(a.out, "ollama version is %s\n", apiVersion)
		fmt.Fprintf(a.out, "Warning: the server at %s is not ollmlx\n", a.config.Host.URL())
		fmt.Fprintf(a.out, "Warning: client version is %s\n", version.Version)
	default:
		fmt.Fprintf(a.out, "ollmlx version is %s\n", program)
		if program != version.Version {
			fmt.Fprintf(a.out, "Warning: client version is %s\n", version.Version)
		}
	}
	return nil
}

// completeModels offers the names of stored models to the shell; up to max arguments are names, 0 for any number.
func (a *app) completeModels(max int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		if max > 0 && len(args) >= max {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		list, err := a.client().List(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, m := range list.Models {
			if strings.HasPrefix(m.Name, toComplete) {
				names = append(names, m.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
