// Package gguf reads the heads of GGUF files without reading their tensors.
//
// A file is untrusted, and what comes after this reader, llama.cpp, is C++ in a process that the user trusts with memory. So
// every count, length, dimension and offset is checked against the file's size before anything is made of it. The
// invariant: whatever Read returns describes bytes that exist, exactly as many as each tensor's type and shape need.
//
// The readers of others that were looked at divide by an alignment of zero, allocate by counts that the file claims, or panic
// at values of another type than they expect.
package gguf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// Magic is how every file begins.
const Magic = "GGUF"

// Bounds that no honest file comes near.
const (
	maxKeys    = 1 << 16
	maxTensors = 1 << 20
	maxKey     = 1 << 16 // the format's own
	maxString  = 16 << 20
	// maxText bounds all strings together that are held at once.
	maxText = 256 << 20
	// maxName and maxDims are llama.cpp's.
	maxName = 63
	maxDims = 4
	// maxElements bounds a dimension so that products stay far from the end of an int64.
	maxElements  = 1 << 40
	maxAlignment = 1 << 20
	// keptElements is the longest array whose elements are kept.
	keptElements     = 1 << 20
	defaultAlignment = 32
	alignmentKey     = "general.alignment"
)

const (
	// The least that an entry takes in the file: a key of one byte with a one-byte value, and a tensor of one dimension.
	minKey    = 8 + 1 + 4 + 1
	minTensor = 8 + 1 + 4 + 8 + 4 + 8
)

// Types of values.
const (
	typeUint8 = iota
	typeInt8
	typeUint16
	typeInt16
	typeUint32
	typeInt32
	typeFloat32
	typeBool
	typeString
	typeArray
	typeUint64
	typeInt64
	typeFloat64
)

// scalarSizes holds the bytes of the types that have a fixed size.
var scalarSizes = map[uint32]int64{
	typeUint8: 1, typeInt8: 1, typeUint16: 2, typeInt16: 2, typeUint32: 4, typeInt32: 4, typeFloat32: 4, typeBool: 1,
	typeUint64: 8, typeInt64: 8, typeFloat64: 8,
}

// File is the head of a file.
type File struct {
	Version uint32
	// Values are the file's keys: integers as int64 or uint64, floats as float64, bool, string, *Array.
	Values  map[string]any
	Tensors []Tensor
	// Parameters is the number of elements of all tensors, DataSize their bytes.
	Parameters, DataSize uint64
}

// Array is a value of several elements. Elements is nil where they were not asked for or are too many.
type Array struct {
	Length   uint64
	Elements []any
}

// Tensor is one entry of the head.
type Tensor struct {
	Name string
	Type Type
	// Shape has the fastest dimension first, as the file.
	Shape []uint64
	// Offset counts from the beginning of the data.
	Offset, Size uint64
}

// Options say what Read keeps.
type Options struct {
	// Arrays keeps the elements of arrays.
	Arrays bool
	// Token is told each entry of the vocabulary.
	Token func(string)
}

// Read reads the head of a file of the given size. What is wrong with the file is of kind ErrInvalid.
func Read(file io.ReaderAt, size int64, o Options) (*File, error) {
	r := &reader{r: bufio.NewReaderSize(io.NewSectionReader(file, 0, size), 256<<10), size: size, o: o}
	f := r.file()
	if r.err != nil {
		return nil, r.err
	}
	return f, nil
}

// reader reads on until something is wrong; then err says what, and everything read is zero.
type reader struct {
	r         *bufio.Reader
	pos, size int64
	text      uint64
	o         Options
	err       error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = errdefs.New(errdefs.ErrInvalid, "the GGUF file is damaged: %s", fmt.Sprintf(format, args...))
	}
}

func (r *reader) left() int64 { return r.size - r.pos }

func (r *reader) bytes(n int64) []byte {
	if r.err != nil {
		return nil
	}
	if n > r.left() {
		r.fail("it ends within its header")
		return nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.r, b); err != nil {
		r.failRead(err)
		return nil
	}
	r.pos += n
	return b
}

func (r *reader) skip(n int64) {
	if r.err != nil {
		return
	}
	if n < 0 || n > r.left() {
		r.fail("it ends within its header")
		return
	}
	for n > 0 {
		k, err := r.r.Discard(int(min(n, 1<<30)))
		r.pos += int64(k)
		if err != nil {
			r.failRead(err)
			return
		}
		n -= int64(k)
	}
}

func (r *reader) failRead(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		r.fail("it ends within its header")
		return
	}
	if r.err == nil {
		r.err = fmt.Errorf("reading a GGUF file: %w", err)
	}
}

func (r *reader) u32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) str(most uint64, what string) string {
	n := r.u64()
	if n > most {
		r.fail("it has %s of %d bytes", what, n)
		return ""
	}
	if r.text += n; r.text > maxText {
		r.fail("its texts have more than %d bytes", maxText)
		return ""
	}
	return string(r.bytes(int64(n)))
}

func (r *reader) file() *File {
	if magic := string(r.bytes(4)); r.err == nil && magic != Magic {
		// Ollama's text.
		r.err = errdefs.New(errdefs.ErrInvalid, "supplied file was not in GGUF format")
	}
	f := &File{Version: r.u32(), Values: map[string]any{}}
	tensors, keys := r.u64(), r.u64()
	switch {
	case r.err != nil:
		return nil
	case f.Version != 2 && f.Version != 3:
		r.fail("its version %d is not supported (2 and 3 are)", f.Version)
	case tensors > maxTensors || keys > maxKeys:
		r.fail("it claims %d tensors and %d keys", tensors, keys)
	case tensors*minTensor+keys*minKey > uint64(r.left()):
		r.fail("it is too short for %d tensors and %d keys", tensors, keys)
	}
	for range keys {
		if r.err != nil {
			return nil
		}
		key := r.str(maxKey, "a key")
		if _, twice := f.Values[key]; twice {
			r.fail("it has the key %s twice", clip(key))
		}
		f.Values[key] = r.value(key, r.u32())
	}
	alignment := r.alignment(f)
	r.tensors(f, tensors)
	if r.err != nil {
		return nil
	}
	start := r.pos + (alignment-r.pos%alignment)%alignment
	r.place(f, uint64(max(r.size-start, 0)), uint64(alignment))
	return f
}

// alignment returns the distance of tensors. It is a divisor, so that 0 must not come through.
func (r *reader) alignment(f *File) int64 {
	v, ok := f.Values[alignmentKey]
	if !ok {
		return defaultAlignment
	}
	n, ok := v.(uint64)
	if !ok || n == 0 || n > maxAlignment || n&(n-1) != 0 {
		r.fail("its alignment %v is no power of two", v)
		return defaultAlignment
	}
	return int64(n)
}

func (r *reader) value(key string, kind uint32) any {
	switch kind {
	case typeString:
		return r.str(maxString, "a string")
	case typeArray:
		return r.array(key)
	}
	n, ok := scalarSizes[kind]
	if !ok {
		r.fail("the key %s has a value of the unknown type %d", clip(key), kind)
		return nil
	}
	return scalar(kind, r.bytes(n))
}

func (r *reader) array(key string) *Array {
	kind, n := r.u32(), r.u64()
	a := &Array{Length: n}
	keep := r.o.Arrays && n <= keptElements
	if kind == typeString {
		if n > uint64(r.left())/8 {
			r.fail("the array %s claims %d strings", clip(key), n)
			return a
		}
		told := r.o.Token != nil && key == "tokenizer.ggml.tokens"
		for i := uint64(0); i < n && r.err == nil; i++ {
			s := r.str(maxString, "a string")
			if keep {
				a.Elements = append(a.Elements, s)
			}
			if told {
				r.o.Token(s)
			}
		}
		return a
	}
	size, ok := scalarSizes[kind]
	switch {
	case !ok:
		r.fail("the array %s has elements of the unknown type %d", clip(key), kind)
	case n > uint64(r.left())/uint64(size):
		r.fail("the array %s claims %d elements", clip(key), n)
	case !keep:
		r.skip(int64(n) * size)
	default:
		for i := uint64(0); i < n && r.err == nil; i++ {
			a.Elements = append(a.Elements, scalar(kind, r.bytes(size)))
		}
	}
	return a
}

func scalar(kind uint32, b []byte) any {
	if b == nil {
		return nil
	}
	switch kind {
	case typeUint8:
		return uint64(b[0])
	case typeInt8:
		return int64(int8(b[0]))
	case typeUint16:
		return uint64(binary.LittleEndian.Uint16(b))
	case typeInt16:
		return int64(int16(binary.LittleEndian.Uint16(b)))
	case typeUint32:
		return uint64(binary.LittleEndian.Uint32(b))
	case typeInt32:
		return int64(int32(binary.LittleEndian.Uint32(b)))
	case typeFloat32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
	case typeBool:
		return b[0] != 0
	case typeUint64:
		return binary.LittleEndian.Uint64(b)
	case typeInt64:
		return int64(binary.LittleEndian.Uint64(b))
	default:
		return math.Float64frombits(binary.LittleEndian.Uint64(b))
	}
}

// tensors reads the entries, place checks where they lie.
func (r *reader) tensors(f *File, n uint64) {
	names := make(map[string]bool, n)
	for i := uint64(0); i < n && r.err == nil; i++ {
		t := Tensor{Name: r.str(maxName, "a tensor's name")}
		if names[t.Name] {
			r.fail("it has the tensor %s twice", clip(t.Name))
		}
		names[t.Name] = true
		dims := r.u32()
		if dims == 0 || dims > maxDims {
			r.fail("the tensor %s has %d dimensions", clip(t.Name), dims)
			return
		}
		elements := uint64(1)
		for range dims {
			d := r.u64()
			hi, lo := bits.Mul64(elements, d)
			if r.err == nil && (d == 0 || d > maxElements || hi != 0 || lo > maxElements) {
				r.fail("the tensor %s has an impossible dimension of %d", clip(t.Name), d)
				return
			}
			elements = lo
			t.Shape = append(t.Shape, d)
		}
		kind := r.u32()
		known, ok := types[kind]
		switch {
		case r.err != nil:
			return
		case !ok:
			r.fail("the tensor %s has the unknown type %d", clip(t.Name), kind)
			return
		case t.Shape[0]%known.block != 0:
			r.fail("the tensor %s has rows of %d elements, which are no blocks of %s", clip(t.Name), t.Shape[0], known.Name)
			return
		}
		t.Type, t.Offset = known, r.u64()
		t.Size = elements / known.block * known.size
		f.Parameters += elements
		f.DataSize += t.Size
		f.Tensors = append(f.Tensors, t)
	}
}

// place refuses tensors that lie outside the file's data.
func (r *reader) place(f *File, data, alignment uint64) {
	for _, t := range f.Tensors {
		switch {
		case t.Offset%alignment != 0:
			r.fail("the tensor %s is not aligned", clip(t.Name))
		case t.Size > data || t.Offset > data-t.Size:
			r.fail("the tensor %s reaches beyond the end of the file", clip(t.Name))
		}
	}
}

// clip keeps a hostile name from flooding a message.
func clip(s string) string {
	const most = 100
	if len(s) > most {
		s = s[:most] + "..."
	}
	return fmt.Sprintf("%q", strings.ToValidUTF8(s, "?"))
}
