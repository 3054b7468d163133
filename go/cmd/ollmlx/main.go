// Command ollmlx is the server and its command line.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/ollmlx/ollmlx/go/internal/cli"
	"github.com/ollmlx/ollmlx/go/internal/config"
)

func main() {
	cfg, warnings, err := config.Load()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(cli.ExitError)
	}
	os.Exit(cli.Run(context.Background(), cli.Params{Config: cfg, Warnings: warnings}, os.Args[1:]))
}
