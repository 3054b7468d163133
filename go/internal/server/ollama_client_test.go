package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
)

// Ollama's own client in Go, whole and streaming, does all that it can do. Every method is called, also those that come
// with a newer version of it.
func TestOllamaGoClient(t *testing.T) {
	b := newCompatibilityBed(t)
	b.script(schedtest.Prefill(5, 5), schedtest.Thinking("hm"), schedtest.Content("Hello"), schedtest.Content(" <you>"), schedtest.Stop())
	base, err := url.Parse(b.http.URL)
	if err != nil {
		t.Fatal(err)
	}
	client, ctx := api.NewClient(base, http.DefaultClient), t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	refused := func(err error, status int, text string) {
		t.Helper()
		var se api.StatusError
		if !errors.As(err, &se) || se.StatusCode != status || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %d %s", err, status, text)
		}
	}
	whole := false

	ok(client.Heartbeat(ctx))
	if v, err := client.Version(ctx); v != "1.2.3" {
		t.Errorf("got version %q, %v", v, err)
	}
	if s, err := client.CloudStatusExperimental(ctx); err != nil || !s.Cloud.Disabled {
		t.Errorf("got %v, %v", s, err)
	}
	for _, stream := range []*bool{nil, &whole} {
		text, thinking, parts := "", "", 0
		var last api.GenerateResponse
		ok(client.Generate(ctx, &api.GenerateRequest{Model: "full", Prompt: "hi", Stream: stream}, func(r api.GenerateResponse) error {
			text, thinking, parts, last = text+r.Response, thinking+r.Thinking, parts+1, r
			return nil
		}))
		if text != "Hello <you>" || thinking != "hm" || !last.Done || last.DoneReason != "stop" || (parts == 1) != (stream != nil) {
			t.Errorf("generate: got %q, %q in %d parts, %+v", text, thinking, parts, last)
		}
		text, thinking, parts = "", "", 0
		ok(client.Chat(ctx, &api.ChatRequest{Model: "full", Messages: []api.Message{{Role: "user", Content: "hi"}}, Stream: stream}, func(r api.ChatResponse) error {
			text, thinking, parts = text+r.Message.Content, thinking+r.Message.Thinking, parts+1
			return nil
		}))
		if text != "Hello <you>" || thinking != "hm" || (parts == 1) != (stream != nil) {
			t.Errorf("chat: got %q, %q in %d parts", text, thinking, parts)
		}
	}
	if r, err := client.Embed(ctx, &api.EmbedRequest{Model: "full", Input: "hi"}); err != nil || len(r.Embeddings) != 1 {
		t.Errorf("got %v, %v", r, err)
	}
	if r, err := client.Embeddings(ctx, &api.EmbeddingRequest{Model: "full", Prompt: "hi"}); err != nil || len(r.Embedding) != 2 {
		t.Errorf("got %v, %v", r, err)
	}
	if r, err := client.ListRunning(ctx); err != nil || len(r.Models) != 1 || r.Models[0].Name != "full:latest" {
		t.Errorf("got %v, %v", r, err)
	}
	blob := []byte("content")
	ok(client.CreateBlob(ctx, fmt.Sprintf("sha256:%x", sha256.Sum256(blob)), bytes.NewReader(blob)))
	status := ""
	progress := func(p api.ProgressResponse) error { status = p.Status; return nil }
	for name, do := range map[string]func() error{
		"create": func() error {
			return client.Create(ctx, &api.CreateRequest{Model: "new", From: "full", System: "s"}, progress)
		},
		"pull": func() error { return client.Pull(ctx, &api.PullRequest{Model: "other"}, progress) },
		"push": func() error { return client.Push(ctx, &api.PushRequest{Model: "full"}, progress) },
	} {
		status = ""
		if err := do(); err != nil || status != "success" {
			t.Errorf("%s: got %q, %v", name, status, err)
		}
	}
	if r, err := client.Show(ctx, &api.ShowRequest{Model: "new"}); err != nil || r.System != "s" || r.Details.Format != "mlx" {
		t.Errorf("got %v, %v", r, err)
	}
	ok(client.Copy(ctx, &api.CopyRequest{Source: "new", Destination: "newer"}))
	if r, err := client.List(ctx); err != nil || r.Models[0].Name != "newer:latest" {
		t.Errorf("got %v, %v", r, err)
	}
	ok(client.Delete(ctx, &api.DeleteRequest{Model: "newer"}))
	refused(client.Delete(ctx, &api.DeleteRequest{Model: "newer"}), 404, "model 'newer' not found")

	_, err = client.Whoami(ctx)
	refused(err, 403, "ollama cloud is disabled")
	refused(client.Signout(ctx), 403, "ollama cloud is disabled")
	refused(client.Disconnect(ctx, "key"), 403, "ollama cloud is disabled")
	// Ollama has removed these.
	for _, err := range []error{
		client.SetAliasExperimental(ctx, &api.AliasRequest{}), client.DeleteAliasExperimental(ctx, &api.AliasDeleteRequest{}),
	} {
		if err == nil {
			t.Error("an alias is taken and forgotten")
		}
	}

	// An answer that the runner breaks off is an error and not a short answer.
	b.script(schedtest.Content("Hel"), &runnerpb.Event{Kind: &runnerpb.Event_Failed{Failed: &runnerpb.Failed{Code: 13, Message: "broken"}}})
	if err := client.Chat(ctx, &api.ChatRequest{Model: "full", Messages: []api.Message{{Role: "user", Content: "hi"}}}, func(api.ChatResponse) error { return nil }); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("got %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := client.Heartbeat(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}

	source, err := os.ReadFile("ollama_client_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for i := range reflect.TypeOf(client).NumMethod() {
		if name := reflect.TypeOf(client).Method(i).Name; !regexp.MustCompile(`client\.` + name + `\(`).Match(source) {
			t.Errorf("the method %s is not called", name)
		}
	}
}
