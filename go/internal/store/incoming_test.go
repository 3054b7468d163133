package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
)

// elsewhere makes a model in a store of its own and returns its manifest, its layers and how to read them.
func elsewhere(t *testing.T) (out *Outgoing, content func(Layer) []byte) {
	t.Helper()
	s := open(t, Params{})
	createMLX(t, s, "there")
	out, err := s.Send(name(t, "there"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(out.Close)
	return out, func(l Layer) []byte {
		f, err := out.Open(l)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var b bytes.Buffer
		if _, err := b.ReadFrom(f); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
}

func receive(t *testing.T, s *Store, as string, raw []byte) *Incoming {
	t.Helper()
	in, err := s.Receive(name(t, as), raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.Close)
	return in
}

// bring stores a layer's blob in parts of 100 bytes, the last part first.
func bring(t *testing.T, s *Store, l Layer, content []byte) {
	t.Helper()
	p := must(s.OpenPartial(l.Digest, l.Size, 100))
	defer p.Close()
	parts := p.Parts()
	for i := len(parts) - 1; i >= 0; i-- {
		if err := p.Write(i, content[parts[i].Offset:parts[i].Offset+parts[i].Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestReceive(t *testing.T) {
	out, content := elsewhere(t)
	s := open(t, Params{})
	in := receive(t, s, "here", out.Manifest)
	if got := must(in.Missing()); got == 0 {
		t.Error("nothing is missing")
	}
	for i, l := range in.Layers() {
		if _, err := in.Commit(); err == nil {
			t.Fatalf("committed with %d of %d layers", i, len(in.Layers()))
		}
		if got := names(t, s); len(got) > 0 {
			t.Fatalf("list shows %v", got)
		}
		bring(t, s, l, content(l))
	}
	if got := must(in.Missing()); got != 0 {
		t.Errorf("%d bytes are missing", got)
	}
	if released, err := in.Commit(); released || err != nil {
		t.Errorf("got %v, %v", released, err)
	}
	m := must(s.Get(name(t, "here")))
	if m.Format != FormatMLX || !bytes.Equal(must(os.ReadFile(s.manifestPath(m.Name))), out.Manifest) {
		t.Errorf("got %+v", m)
	}
	if left := must(os.ReadDir(filepath.Join(s.dir, stateDir, incomingDir))); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left := must(os.ReadDir(filepath.Join(s.dir, stateDir, unusedDir))); len(left) > 0 {
		t.Errorf("marks of used blobs stay: %v", left)
	}
}

// What an interrupted transfer brought outlasts restarts and deletes for a week, and not for ever.
func TestInterruptedTransferIsKept(t *testing.T) {
	out, content := elsewhere(t)
	dir := t.TempDir()
	s := open(t, Params{Dir: dir, Grace: time.Nanosecond})
	in := receive(t, s, "here", out.Manifest)
	whole, part := in.Layers()[0], in.Layers()[1]
	bring(t, s, whole, content(whole))
	p := must(s.OpenPartial(part.Digest, part.Size, 10))
	if err := p.Write(0, content(part)[:7]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenPartial(part.Digest, part.Size, 10); !errors.Is(err, errdefs.ErrBusy) {
		t.Errorf("opened twice: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	createMLX(t, s, "other")
	if err := s.Delete(name(t, "other")); err != nil { // sweeps
		t.Fatal(err)
	}
	s.Close()

	s = open(t, Params{Dir: dir, Grace: time.Nanosecond})
	if _, err := s.blobSize(whole.Digest); err != nil {
		t.Errorf("what was complete is gone: %v", err)
	}
	if got := s.Received(part); got != 7 {
		t.Errorf("got %d bytes", got)
	}
	s.Close()

	for _, r := range must(filepath.Glob(filepath.Join(dir, stateDir, incomingDir, "*"))) {
		age(t, r, incomingPatience+time.Hour)
	}
	s = open(t, Params{Dir: dir, Grace: time.Nanosecond})
	if left := blobs(t, s); len(left) > 0 {
		t.Errorf("blobs stay for ever: %v", left)
	}
	if left := must(os.ReadDir(filepath.Join(dir, stateDir, tempDir))); len(left) > 0 {
		t.Errorf("parts stay for ever: %v", left)
	}
}

// Notes of what has come are checked before they are believed.
func TestDamagedNotes(t *testing.T) {
	l := Layer{Digest: digestOf(bigBlob[:100]), Size: 100}
	for what, note := range map[string]string{
		"no JSON":         `{`,
		"another size":    `{"size": 99, "parts": [{"offset": 0, "size": 99, "done": 5}]}`,
		"a gap":           `{"size": 100, "parts": [{"offset": 0, "size": 40}, {"offset": 50, "size": 50}]}`,
		"too short":       `{"size": 100, "parts": [{"offset": 0, "size": 40}]}`,
		"too long":        `{"size": 100, "parts": [{"offset": 0, "size": 400}]}`,
		"more than whole": `{"size": 100, "parts": [{"offset": 0, "size": 100, "done": 101}]}`,
		"negative":        `{"size": 100, "parts": [{"offset": 0, "size": 100, "done": -1}]}`,
		"overflow":        `{"size": 100, "parts": [{"offset": 0, "size": 9223372036854775807, "done": 1}, {"offset": 9223372036854775807, "size": 101}]}`,
		"not in the file": `{"size": 100, "parts": [{"offset": 0, "size": 100, "done": 50}]}`,
		"endless parts":   `{"size": 100, "parts": [` + strings.Repeat(`{"offset":0,"size":0},`, 5000) + `{"offset": 0, "size": 100}]}`,
	} {
		s := open(t, Params{})
		path := s.partialPath(l.Digest)
		if err := errors.Join(os.WriteFile(path, []byte("1234567"), 0o644), os.WriteFile(path+partialState, []byte(note), 0o644)); err != nil {
			t.Fatal(err)
		}
		if got := s.Received(l); got != 0 {
			t.Errorf("%s: got %d bytes", what, got)
		}
		bring(t, s, l, bigBlob[:100])
	}
}

func TestPartialWithWrongContent(t *testing.T) {
	s := open(t, Params{})
	p := must(s.OpenPartial(digestOf([]byte("right")), 5, 5))
	defer p.Close()
	if err := p.Finish(t.Context()); err == nil {
		t.Error("finished what is not complete")
	}
	if err := p.Write(0, []byte("too long")); err == nil {
		t.Error("wrote more than there is room for")
	}
	if err := p.Write(0, []byte("wrong")); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Finish(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := p.Finish(t.Context()); !errors.Is(err, errdefs.ErrInvalid) || !strings.HasPrefix(err.Error(), "digest mismatch") {
		t.Errorf("got %v", err)
	}
	if len(blobs(t, s)) > 0 || len(must(os.ReadDir(filepath.Join(s.dir, stateDir, tempDir)))) > 0 {
		t.Error("something is left behind")
	}
}

// A model that could not work replaces none that does.
func TestReceiveModelThatCannotWork(t *testing.T) {
	files := mlxmodeltest.Model()
	there := open(t, Params{})
	createMLX(t, there, "m")
	f := foreign{t, there.dir}
	broken := f.model("registry.ollama.ai/library/broken/latest", `{"model_format":"mlx"}`)
	// A configuration and weights, and no tokenizer.
	config, weights := f.blob(files["config.json"]), f.blob(files["model.safetensors"])
	raw := strings.Replace(string(must(os.ReadFile(broken))), `"layers":null`,
		`"layers":[{"mediaType":"`+mediaFile+`","digest":"`+config.Digest+`","size":`+strconv.FormatInt(config.Size, 10)+`,"name":"config.json"},`+
			`{"mediaType":"`+mediaFile+`","digest":"`+weights.Digest+`","size":`+strconv.FormatInt(weights.Size, 10)+`,"name":"model.safetensors"}]`, 1)
	before := must(there.Get(name(t, "m")))
	in := receive(t, there, "m", []byte(raw))
	if got := must(in.Missing()); got != 0 {
		t.Fatalf("%d bytes are missing", got)
	}
	if _, err := in.Commit(); err == nil || !strings.Contains(err.Error(), "tokenizer") {
		t.Errorf("got %v", err)
	}
	if after := must(there.Get(name(t, "m"))); after.Digest != before.Digest {
		t.Error("the model was replaced")
	}
}

// What is being sent stays whole when it is deleted.
func TestDeletedWhileItIsSent(t *testing.T) {
	s := open(t, Params{Grace: time.Nanosecond})
	mustCreate(t, s, api.CreateRequest{Model: "m", Files: upload(t, s, mlxmodeltest.Model())})
	out := must(s.Send(name(t, "m")))
	if err := s.Delete(name(t, "m")); err != nil {
		t.Fatal(err)
	}
	for _, l := range out.Layers {
		f, err := out.Open(l)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	out.Close()
	createMLX(t, s, "other")
	if err := s.Delete(name(t, "other")); err != nil {
		t.Fatal(err)
	}
	if left := blobs(t, s); len(left) > 0 {
		t.Errorf("blobs stay for ever: %v", left)
	}
}
