package cli

import (
	"context"

	"github.com/ollama/ollama/api"
	"github.com/spf13/cobra"
)

func (a *app) pullCommand() *cobra.Command {
	var insecure bool
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
			return a.pull(ctx, client, &api.PullRequest{Model: args[0], Insecure: insecure})
		}),
	}
	cmd.Flags().BoolVar(&insecure, "insecure", false, "use a registry over plain http")
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
