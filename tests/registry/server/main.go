// Command server runs the distribution project's registry on a free loopback port, for tests. It prints its address in
// one line and ends when its standard input does, so that it never outlives the test that started it.
//
// It is a module of its own, so that what the registry depends on stays out of ollmlx's.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/sirupsen/logrus"
)

func main() {
	dir := flag.String("dir", "", "where to keep what is pushed; empty: in memory")
	verbose := flag.Bool("v", false, "log to standard error")
	flag.Parse()
	if !*verbose {
		logrus.SetOutput(io.Discard)
	}

	config := &configuration.Configuration{Storage: configuration.Storage{"inmemory": {}}}
	if *dir != "" {
		config.Storage = configuration.Storage{"filesystem": {"rootdirectory": *dir}}
	}
	config.Storage["delete"] = configuration.Parameters{"enabled": true}
	config.HTTP.Secret = "only for tests"
	config.Catalog.MaxEntries = 1000

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	app := handlers.NewApp(context.Background(), config)
	fmt.Println(ln.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Fprintln(os.Stderr, http.Serve(ln, app))
	os.Exit(1)
}
