package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// file builds a file of a header and zeroed data.
func file(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	b = append(b, header...)
	return append(b, make([]byte, data)...)
}

func read(b []byte) (*Header, error) { return ReadHeader(bytes.NewReader(b), int64(len(b))) }

func TestReadHeader(t *testing.T) {
	h, err := read(file(`{"__metadata__":{"format":"mlx"},
		"b.weight":{"dtype":"U32","shape":[2,3],"data_offsets":[8,32]},
		"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},
		"scalar":{"dtype":"F32","shape":[],"data_offsets":[32,36]},
		"empty":{"dtype":"F32","shape":[0,7],"data_offsets":[36,36]},
		"half":{"dtype":"F4","shape":[3],"data_offsets":[36,38]}}   `, 38))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, x := range h.Tensors {
		names = append(names, fmt.Sprintf("%s %s %v %d %d", x.Name, x.DType, x.Shape, x.Elements, x.Size()))
	}
	want := []string{"a BF16 [4] 4 8", "b.weight U32 [2 3] 6 24", "empty F32 [0 7] 0 0", "half F4 [3] 3 2", "scalar F32 [] 1 4"}
	if !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
	if h.Metadata["format"] != "mlx" {
		t.Errorf("got metadata %v", h.Metadata)
	}
}

func TestReadHeaderRefuses(t *testing.T) {
	prefix := func(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }
	one := func(entry string) []byte { return file(`{"w":`+entry+`}`, 16) }
	for _, tt := range []struct {
		name string
		in   []byte
		text string
	}{
		{"nothing", nil, "too few"},
		{"seven bytes", make([]byte, 7), "too few"},
		{"length beyond the file", prefix(100), "ends before"},
		{"huge length", append(prefix(math.MaxUint64), "{}"...), "more than the format allows"},
		{"length that is negative as int64", append(prefix(1<<63), "{}"...), "more than the format allows"},
		{"length just above the bound", prefix(MaxHeaderSize + 1), "more than the format allows"},
		{"no header", prefix(0), "no JSON object"},
		{"array", file(`[]`, 0), "no JSON object"},
		{"trailing text", file(`{} x`, 0), "no JSON object"},
		{"cut JSON", file(`{"w":{"dtype":"F32"`, 0), "no JSON object"},
		{"metadata of numbers", file(`{"__metadata__":{"a":1}}`, 0), "no map of strings"},
		{"entry is a string", one(`"x"`), `tensor "w"`},
		{"unknown type", one(`{"dtype":"F128","shape":[1],"data_offsets":[0,16]}`), "unknown type"},
		{"no shape", one(`{"dtype":"F32","data_offsets":[0,4]}`), "no usable shape"},
		{"too many dimensions", one(`{"dtype":"F32","shape":[` + strings.Repeat("1,", 40) + `1],"data_offsets":[0,4]}`), "no usable shape"},
		{"negative dimension", one(`{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}`), `tensor "w"`},
		{"fractional dimension", one(`{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}`), `tensor "w"`},
		{"one offset", one(`{"dtype":"F32","shape":[1],"data_offsets":[4]}`), "two offsets"},
		{"three offsets", one(`{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}`), "two offsets"},
		{"no offsets", one(`{"dtype":"F32","shape":[1]}`), "two offsets"},
		{"negative offset", one(`{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}`), `tensor "w"`},
		{"offset beyond uint64", one(`{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551620]}`), `tensor "w"`},
		{"begin after end", one(`{"dtype":"F32","shape":[1],"data_offsets":[8,4]}`), "outside of the file"},
		{"end after the file", one(`{"dtype":"F32","shape":[5],"data_offsets":[0,20]}`), "outside of the file"},
		{"dimensions overflow", one(`{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}`), "overflows"},
		{"bits overflow", one(`{"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,16]}`), "overflows"},
		{"bits wrap to zero", one(`{"dtype":"F32","shape":[576460752303423488],"data_offsets":[0,0]}`), "overflows"},
		{"size differs from shape", one(`{"dtype":"F32","shape":[2],"data_offsets":[0,4]}`), "its shape needs 8"},
		{"overlap", file(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}}`, 8), "overlap"},
		{"same place", file(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 8), "overlap"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, err := read(tt.in)
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Fatalf("got %v, %v, want an invalid file", h, err)
			}
			if !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %q, want it to say %q", err, tt.text)
			}
		})
	}
}

func TestErrorsStayShort(t *testing.T) {
	_, err := read(file(`{"`+strings.Repeat("n", 1<<20)+`":{"dtype":"`+strings.Repeat("d", 1<<20)+`","shape":[1],"data_offsets":[0,4]}}`, 4))
	if err == nil || len(err.Error()) > 500 {
		t.Errorf("got an error of %d bytes", len(err.Error()))
	}
}

type failingReader struct{ after int64 }

func (f failingReader) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.after {
		return 0, io.ErrClosedPipe
	}
	return copy(p, file(`{"a":1}`, 0)), nil
}

func TestReadErrorsAreNoFaultOfTheFile(t *testing.T) {
	for _, after := range []int64{0, 8} {
		_, err := ReadHeader(failingReader{after}, 100)
		if !errors.Is(err, io.ErrClosedPipe) || errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("after %d: got %v", after, err)
		}
	}
	// The file is shorter than its size was said to be.
	b := file(`{"a":1}`, 0)
	if _, err := ReadHeader(bytes.NewReader(b[:10]), int64(len(b))); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func FuzzReadHeader(f *testing.F) {
	f.Add(file(`{"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}`, 8))
	f.Add(file(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}}`, 8))
	f.Add(file(`{"__metadata__":{"a":"b"}}`, 0))
	f.Add(binary.LittleEndian.AppendUint64(nil, math.MaxUint64))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := read(b)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		var sum uint64
		for _, x := range h.Tensors {
			if x.Begin > x.End || x.End > uint64(len(b)) {
				t.Fatalf("%+v lies outside of %d bytes", x, len(b))
			}
			sum += x.Size()
		}
		if sum > uint64(len(b)) {
			t.Fatalf("tensors claim %d of %d bytes", sum, len(b))
		}
	})
}
