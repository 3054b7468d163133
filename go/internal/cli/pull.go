package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/ollama/ollama/api"
	"github.com/spf13/cobra"
)

func (a *app) pullCommand() *cobra.Command {
	var insecure bool
	var quantize string
	cmd := &cobra.Command{
		Use:   "pull MODEL",
		Short: "Pull a model from a registry or from Hugging Face",
		Long: "Pull a model.\n\n" +
			"  mlx-community/X, hf.co/ORG/X, https://huggingface.co/ORG/X   from Hugging Face\n" +
			"  the same followed by @REVISION                               a branch, tag or commit\n" +
			"  NAME, NAME:TAG                                               from Ollama's registry\n" +
			"  ORG/X                                                        from Ollama's registry, or else from Hugging Face\n\n" +
			"An interrupted pull is taken up where it ended. Gated models need \"ollmlx login\" first.",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeModels(1),
		RunE: a.clientCommand(func(ctx context.Context, client *api.Client, args []string) error {
			if quantize != "" {
				return a.pullQuantized(ctx, args[0], quantize)
			}
			return a.pull(ctx, client, &api.PullRequest{Model: args[0], Insecure: insecure})
		}),
	}
	cmd.Flags().BoolVar(&insecure, "insecure", false, "use a registry over plain http")
	cmd.Flags().StringVarP(&quantize, "quantize", "q", "", "quantize a full-precision model of Hugging Face while it is imported, e.g. 4bit, mxfp4")
	cmd.MarkFlagsMutuallyExclusive("insecure", "quantize")
	return cmd
}

func (a *app) pull(ctx context.Context, client *api.Client, req *api.PullRequest) error {
	p := a.newProgress()
	defer p.stop()
	return client.Pull(ctx, req, func(r api.ProgressResponse) error {
		p.update(r, r.Status+":")
		return nil
	})
}

// pullQuantized is pull with a field that Ollama's client does not know.
func (a *app) pullQuantized(ctx context.Context, name, quantize string) error {
	body, err := json.Marshal(map[string]string{"model": name, "quantize": quantize})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.config.Host.URL().JoinPath("/api/pull").String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := a.http().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	p := a.newProgress()
	defer p.stop()
	for lines := json.NewDecoder(resp.Body); ; {
		var line struct {
			api.ProgressResponse
			Error string `json:"error"`
		}
		switch err := lines.Decode(&line); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading the server's answer: %w", err)
		case line.Error != "":
			return errors.New(line.Error)
		}
		p.update(line.ProgressResponse, line.Status+":")
	}
}
