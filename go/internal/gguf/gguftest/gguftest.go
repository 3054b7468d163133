// Package gguftest writes small GGUF files for tests, honest ones and others.
package gguftest

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// File is what to write. The zero File is a model of one tensor.
type File struct {
	Architecture string
	// Keys are further values: string, uint32, uint64, float32, bool, []string.
	Keys []Key
	// Tensors default to one of 32 elements.
	Tensors []Tensor
	// Seed varies the content.
	Seed byte
}

// Key is a key with its value.
type Key struct {
	Name  string
	Value any
}

// Tensor is a tensor of 32-bit floats.
type Tensor struct {
	Name  string
	Shape []uint64
}

// KV returns a key with its value.
func KV(name string, value any) Key { return Key{name, value} }

// Floats returns a tensor of a shape.
func Floats(name string, shape ...uint64) Tensor { return Tensor{name, shape} }

// Bytes returns the file.
func (f File) Bytes() []byte {
	if f.Architecture == "" {
		f.Architecture = "llama"
	}
	if f.Tensors == nil {
		f.Tensors = []Tensor{{"token_embd.weight", []uint64{8, 4}}}
	}
	keys := append([]Key{{"general.architecture", f.Architecture}}, f.Keys...)
	var b Buffer
	b.Head(3, uint64(len(f.Tensors)), uint64(len(keys)))
	for _, k := range keys {
		b.Key(k.Name, k.Value)
	}
	var data uint64
	for _, t := range f.Tensors {
		b.Tensor(t.Name, t.Shape, 0, data)
		size := uint64(4)
		for _, d := range t.Shape {
			size *= d
		}
		data += (size + 31) / 32 * 32
	}
	b.Align(32)
	for i := range data {
		b.WriteByte(byte(i*31) + f.Seed)
	}
	return b.Bytes()
}

// Buffer writes the parts of a file one by one, so that any of them can be wrong.
type Buffer struct{ bytes.Buffer }

func (b *Buffer) le(v any) {
	if err := binary.Write(b, binary.LittleEndian, v); err != nil {
		panic(err)
	}
}

// Head writes magic, version and counts.
func (b *Buffer) Head(version uint32, tensors, keys uint64) {
	b.WriteString("GGUF")
	b.le(version)
	b.le(tensors)
	b.le(keys)
}

// Text writes a string.
func (b *Buffer) Text(s string) {
	b.le(uint64(len(s)))
	b.WriteString(s)
}

// Key writes a key and its value.
func (b *Buffer) Key(name string, value any) {
	b.Text(name)
	switch v := value.(type) {
	case string:
		b.le(uint32(8))
		b.Text(v)
	case uint32:
		b.le(uint32(4))
		b.le(v)
	case uint64:
		b.le(uint32(10))
		b.le(v)
	case float32:
		b.le(uint32(6))
		b.le(v)
	case bool:
		b.le(uint32(7))
		b.le(v)
	case []string:
		b.ArrayHead(8, uint64(len(v)))
		for _, s := range v {
			b.Text(s)
		}
	default:
		panic(fmt.Sprintf("gguftest: no values of type %T", value))
	}
}

// ArrayHead writes the type and the length that an array claims.
func (b *Buffer) ArrayHead(kind uint32, length uint64) {
	b.le(uint32(9))
	b.le(kind)
	b.le(length)
}

// Tensor writes the entry of a tensor.
func (b *Buffer) Tensor(name string, shape []uint64, kind uint32, offset uint64) {
	b.Text(name)
	b.le(uint32(len(shape)))
	for _, d := range shape {
		b.le(d)
	}
	b.le(kind)
	b.le(offset)
}

// Align fills up to a multiple of n.
func (b *Buffer) Align(n int) {
	for b.Len()%n != 0 {
		b.WriteByte(0)
	}
}
