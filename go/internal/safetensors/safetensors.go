// Package safetensors reads the headers of safetensors files without reading their tensors.
//
// A file is untrusted: every length, shape and offset in its header is checked against the file's size before anything
// is made of it. The invariant: whatever ReadHeader returns describes bytes that exist, exactly as many as each tensor's
// type and shape need, with no two tensors sharing any.
package safetensors

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

const (
	// MaxHeaderSize is the format's own bound on the JSON header.
	MaxHeaderSize = 100_000_000
	// maxDims is far above what any library makes.
	maxDims = 32
	// prefixSize is the little-endian length before the header.
	prefixSize  = 8
	metadataKey = "__metadata__"
)

// dtypeBits holds the types of the format with the bits of one element.
var dtypeBits = map[string]uint64{
	"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
	"I16": 16, "U16": 16, "F16": 16, "BF16": 16,
	"I32": 32, "U32": 32, "F32": 32,
	"I64": 64, "U64": 64, "F64": 64, "C64": 64,
	"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}

// Header is what a file says about its tensors.
type Header struct {
	// Tensors are sorted by name.
	Tensors []Tensor
	// Metadata is the free-form map of the file.
	Metadata map[string]string
}

// Tensor is one entry of a header.
type Tensor struct {
	Name  string
	DType string
	Shape []uint64
	// Elements is the product of Shape.
	Elements uint64
	// Begin and End delimit the tensor's bytes, counted from the end of the header.
	Begin, End uint64
}

// Size returns the tensor's bytes.
func (t Tensor) Size() uint64 { return t.End - t.Begin }

// ReadHeader reads and checks the header of a file of the given size. Errors are of kind ErrInvalid when the content is
// wrong, and those of r otherwise.
func ReadHeader(r io.ReaderAt, size int64) (*Header, error) {
	if size < prefixSize {
		return nil, invalid("the file has %d bytes, too few for a header", size)
	}
	var prefix [prefixSize]byte
	if err := readFull(r, prefix[:], 0); err != nil {
		return nil, err
	}
	length := binary.LittleEndian.Uint64(prefix[:])
	if length > MaxHeaderSize {
		return nil, invalid("the header claims %d bytes, more than the format allows", length)
	}
	if length > uint64(size)-prefixSize {
		return nil, invalid("the header claims %d bytes, but the file ends before; it may be incomplete", length)
	}
	raw := make([]byte, length)
	if err := readFull(r, raw, prefixSize); err != nil {
		return nil, err
	}
	return parse(raw, uint64(size)-prefixSize-length)
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return invalid("the file ends within its header")
	}
	return err
}

// parse checks a header against the bytes that follow it.
func parse(raw []byte, dataSize uint64) (*Header, error) {
	var entries map[string]json.RawMessage
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, invalid("the header is no JSON object: %v", err)
	}
	h := &Header{Tensors: make([]Tensor, 0, len(entries))}
	for name, entry := range entries {
		if name == metadataKey {
			if err := json.Unmarshal(entry, &h.Metadata); err != nil {
				return nil, invalid("%s is no map of strings", metadataKey)
			}
			continue
		}
		t, err := parseTensor(name, entry, dataSize)
		if err != nil {
			return nil, err
		}
		h.Tensors = append(h.Tensors, t)
	}
	if err := checkOverlap(h.Tensors); err != nil {
		return nil, err
	}
	slices.SortFunc(h.Tensors, func(a, b Tensor) int { return strings.Compare(a.Name, b.Name) })
	return h, nil
}

func parseTensor(name string, entry json.RawMessage, dataSize uint64) (Tensor, error) {
	var e struct {
		DType   string    `json:"dtype"`
		Shape   *[]uint64 `json:"shape"`
		Offsets []uint64  `json:"data_offsets"`
	}
	// Negative numbers and fractions do not fit the unsigned fields and fail here.
	if err := json.Unmarshal(entry, &e); err != nil {
		return Tensor{}, invalid("tensor %q: %v", clip(name), err)
	}
	width, ok := dtypeBits[e.DType]
	switch {
	case !ok:
		return Tensor{}, invalid("tensor %q has the unknown type %q", clip(name), clip(e.DType))
	case e.Shape == nil || len(*e.Shape) > maxDims:
		return Tensor{}, invalid("tensor %q has no usable shape", clip(name))
	case len(e.Offsets) != 2:
		return Tensor{}, invalid("tensor %q needs two offsets", clip(name))
	}
	t := Tensor{Name: name, DType: e.DType, Shape: *e.Shape, Elements: 1, Begin: e.Offsets[0], End: e.Offsets[1]}
	if t.Begin > t.End || t.End > dataSize {
		return Tensor{}, invalid("tensor %q lies outside of the file (%d to %d of %d bytes); the file may be incomplete", clip(name), t.Begin, t.End, dataSize)
	}
	for _, d := range t.Shape {
		hi, lo := bits.Mul64(t.Elements, d)
		if hi != 0 {
			return Tensor{}, invalid("the shape of tensor %q overflows", clip(name))
		}
		t.Elements = lo
	}
	hi, need := bits.Mul64(t.Elements, width)
	if hi != 0 || need > math.MaxUint64-7 {
		return Tensor{}, invalid("the shape of tensor %q overflows", clip(name))
	}
	if (need+7)/8 != t.Size() {
		return Tensor{}, invalid("tensor %q has %d bytes, its shape needs %d", clip(name), t.Size(), (need+7)/8)
	}
	return t, nil
}

func checkOverlap(tensors []Tensor) error {
	slices.SortFunc(tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Begin, b.Begin), cmp.Compare(a.End, b.End))
	})
	for i := 1; i < len(tensors); i++ {
		if a, b := tensors[i-1], tensors[i]; b.Begin < a.End {
			return invalid("tensors %q and %q overlap", clip(a.Name), clip(b.Name))
		}
	}
	return nil
}

// clip keeps a hostile name from flooding an error message.
func clip(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

func invalid(format string, args ...any) error {
	return errdefs.New(errdefs.ErrInvalid, "%s", fmt.Sprintf(format, args...))
}
