package gguf

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/gguf/gguftest"
)

func read(b []byte, o Options) (*File, error) { return Read(bytes.NewReader(b), int64(len(b)), o) }

func TestRead(t *testing.T) {
	var tokens []string
	f, err := read(gguftest.File{
		Architecture: "qwen3",
		Keys: []gguftest.Key{
			gguftest.KV("qwen3.context_length", uint32(4096)), gguftest.KV("general.file_type", uint32(15)), gguftest.KV("qwen3.rope.freq_base", float32(0.5)),
			gguftest.KV("tokenizer.ggml.tokens", []string{"a", "b"}), gguftest.KV("tokenizer.chat_template", "{{ messages }}"), gguftest.KV("x.y", true),
		},
		Tensors: []gguftest.Tensor{gguftest.Floats("a", 8, 4), gguftest.Floats("b", 3)},
	}.Bytes(), Options{Token: func(s string) { tokens = append(tokens, s) }})
	if err != nil {
		t.Fatal(err)
	}
	if f.Architecture() != "qwen3" || f.Own("context_length") != 4096 || f.FileType() != "Q4_K_M" || f.ChatTemplate() == "" {
		t.Errorf("got %+v", f.Values)
	}
	if f.Values["qwen3.rope.freq_base"] != 0.5 || f.Values["x.y"] != true || strings.Join(tokens, "") != "ab" {
		t.Errorf("got %+v and tokens %q", f.Values, tokens)
	}
	if len(f.Tensors) != 2 || f.Parameters != 35 || f.DataSize != 140 || f.Tensors[0].Type.Name != "F32" {
		t.Errorf("got %+v", f)
	}
	if a := f.Values["tokenizer.ggml.tokens"].(*Array); a.Length != 2 || a.Elements != nil {
		t.Errorf("got %+v, want the length of an array that was not asked for", a)
	}
}

// TestReadRefuses has a file for each class of faults that readers of GGUF files are known for.
func TestReadRefuses(t *testing.T) {
	// file makes one whose parts build writes; the tensor data is 128 bytes.
	file := func(tensors, keys uint64, build func(b *gguftest.Buffer)) []byte {
		var b gguftest.Buffer
		b.Head(3, tensors, keys)
		build(&b)
		b.Align(32)
		b.Write(make([]byte, 128))
		return b.Bytes()
	}
	tensor := func(shape []uint64, kind uint32, offset uint64) []byte {
		return file(1, 0, func(b *gguftest.Buffer) { b.Tensor("t", shape, kind, offset) })
	}
	good := gguftest.File{}.Bytes()
	for _, c := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "ends within"},
		{"four bytes", []byte("GGUF"), "ends within"},
		{"another format", []byte(strings.Repeat("ggml", 20)), "not in GGUF format"},
		{"version 1", append([]byte("GGUF\x01\x00\x00\x00"), make([]byte, 64)...), "version 1"},
		{"version of the other byte order", append([]byte("GGUF\x00\x00\x00\x03"), make([]byte, 64)...), "version"},
		{"giant number of tensors", file(math.MaxUint64, 0, func(*gguftest.Buffer) {}), "claims"},
		{"giant number of keys", file(0, math.MaxUint64, func(*gguftest.Buffer) {}), "claims"},
		{"more tensors than fit", file(1000, 0, func(*gguftest.Buffer) {}), "too short"},
		{"more keys than fit", file(0, 1000, func(*gguftest.Buffer) {}), "too short"},
		{"giant key", file(0, 1, func(b *gguftest.Buffer) { b.Write(bytes.Repeat([]byte{0xff}, 40)) }), "a key of"},
		{"giant string", file(0, 1, func(b *gguftest.Buffer) {
			b.Text("k")
			b.Write([]byte{8, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 127})
		}), "a string of"},
		{"string beyond the end", file(0, 1, func(b *gguftest.Buffer) {
			b.Text("k")
			b.Write([]byte{8, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0})
		}), "ends within"},
		{"giant array of numbers", file(0, 1, func(b *gguftest.Buffer) { b.Text("k"); b.ArrayHead(4, math.MaxUint64/2) }), "claims"},
		{"giant array of strings", file(0, 1, func(b *gguftest.Buffer) { b.Text("k"); b.ArrayHead(8, 1<<40) }), "claims"},
		{"array of arrays", file(0, 1, func(b *gguftest.Buffer) { b.Text("k"); b.ArrayHead(9, 1) }), "unknown type"},
		{"unknown type of value", file(0, 1, func(b *gguftest.Buffer) { b.Text("k"); b.Write(bytes.Repeat([]byte{99}, 16)) }), "unknown type"},
		{"key twice", file(0, 2, func(b *gguftest.Buffer) { b.Key("k", "v"); b.Key("k", "w") }), "twice"},
		{"alignment 0", file(0, 1, func(b *gguftest.Buffer) { b.Key("general.alignment", uint32(0)) }), "alignment"},
		{"alignment 3", file(0, 1, func(b *gguftest.Buffer) { b.Key("general.alignment", uint32(3)) }), "alignment"},
		{"alignment of gigabytes", file(0, 1, func(b *gguftest.Buffer) { b.Key("general.alignment", uint32(1<<31)) }), "alignment"},
		{"alignment that is text", file(0, 1, func(b *gguftest.Buffer) { b.Key("general.alignment", "32") }), "alignment"},
		{"no dimensions", tensor(nil, 0, 0), "0 dimensions"},
		{"five dimensions", tensor([]uint64{1, 1, 1, 1, 1}, 0, 0), "5 dimensions"},
		{"a dimension of 0", tensor([]uint64{0, 4}, 0, 0), "dimension of 0"},
		{"dimensions that overflow", tensor([]uint64{1 << 33, 1 << 33}, 0, 0), "impossible dimension"},
		{"dimensions that overflow to little", tensor([]uint64{1 << 32, 1 << 32, 8}, 0, 0), "impossible dimension"},
		{"a negative dimension", tensor([]uint64{math.MaxUint64}, 0, 0), "impossible dimension"},
		{"unknown type of tensor", tensor([]uint64{32}, 1000, 0), "unknown type"},
		{"type that was removed", tensor([]uint64{32}, 4, 0), "unknown type"},
		{"rows that are no blocks", tensor([]uint64{33}, 2, 0), "no blocks"},
		{"tensor longer than the file", tensor([]uint64{33}, 0, 0), "beyond the end"},
		{"tensor that begins beyond the file", tensor([]uint64{32}, 0, 1<<40), "beyond the end"},
		{"offset that overflows", tensor([]uint64{32}, 0, math.MaxUint64-31), "beyond the end"},
		{"offset that is not aligned", tensor([]uint64{8}, 0, 8), "not aligned"},
		{"tensor twice", file(2, 0, func(b *gguftest.Buffer) {
			b.Tensor("t", []uint64{8}, 0, 0)
			b.Tensor("t", []uint64{8}, 0, 32)
		}), "twice"},
		{"name too long", file(1, 0, func(b *gguftest.Buffer) { b.Tensor(strings.Repeat("n", 64), []uint64{8}, 0, 0) }), "name of"},
		{"data cut off", good[:len(good)-1], "beyond the end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := read(c.file, Options{Arrays: true})
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("got %v, want an invalid file that says %q", err, c.want)
			}
		})
	}
}

func TestEveryBeginningIsRefused(t *testing.T) {
	good := gguftest.File{Keys: []gguftest.Key{gguftest.KV("tokenizer.ggml.tokens", []string{"a", "b"})}}.Bytes()
	for n := range len(good) {
		if _, err := read(good[:n], Options{Arrays: true}); !errors.Is(err, errdefs.ErrInvalid) {
			t.Fatalf("the first %d bytes: got %v", n, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(gguftest.File{Keys: []gguftest.Key{gguftest.KV("a", []string{"b"}), gguftest.KV("c", uint32(1)), gguftest.KV("d", true)}}.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := read(b, Options{Arrays: true})
		if err != nil {
			return
		}
		for _, x := range file.Tensors {
			if x.Offset+x.Size > uint64(len(b)) {
				t.Errorf("the tensor %q lies outside of the file", x.Name)
			}
		}
	})
}
