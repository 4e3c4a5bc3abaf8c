// Protobuf's wire format. By hand, so that an app needs no generated code.
import Foundation

struct WireError: Error, CustomStringConvertible {
  let description: String
}

/// Writes a message. As in proto3, a single value that is zero or empty is left out.
struct Writer {
  private(set) var data = Data()

  mutating func uint(_ field: UInt64, _ value: UInt64) {
    guard value != 0 else { return }
    varint(field << 3)
    varint(value)
  }

  mutating func double(_ field: UInt64, _ value: Double) {
    guard value.bitPattern != 0 else { return }
    varint(field << 3 | 1)
    withUnsafeBytes(of: value.bitPattern.littleEndian) { data.append(contentsOf: $0) }
  }

  mutating func string(_ field: UInt64, _ value: String) {
    bytes(field, Data(value.utf8))
  }

  mutating func bytes(_ field: UInt64, _ value: Data) {
    if !value.isEmpty { message(field, value) }
  }

  /// One of a repeated field, or a message: written even if it is empty.
  mutating func message(_ field: UInt64, _ value: Data) {
    varint(field << 3 | 2)
    varint(UInt64(value.count))
    data.append(value)
  }

  private mutating func varint(_ value: UInt64) {
    var rest = value
    while rest > 127 {
      data.append(UInt8(rest & 127) | 128)
      rest >>= 7
    }
    data.append(UInt8(rest))
  }
}

/// One field of a message, of which only the value of its wire type is set.
struct Field {
  let number: Int
  fileprivate let type: UInt64
  fileprivate let scalar: UInt64
  fileprivate let content: Data

  func uint() throws -> UInt64 { try expect(0, scalar) }
  /// A uint32; a larger number is nothing that a gateway sends.
  func int() throws -> Int {
    guard let value = UInt32(exactly: try uint()) else {
      throw WireError(description: "field \(number) is \(scalar), expected a number below 2^32")
    }
    return Int(value)
  }
  func bool() throws -> Bool { try uint() != 0 }
  func double() throws -> Double { Double(bitPattern: try expect(1, scalar)) }
  func bytes() throws -> Data { try expect(2, content) }
  func string() throws -> String { String(decoding: try bytes(), as: UTF8.self) }

  private func expect<T>(_ wanted: UInt64, _ value: T) throws -> T {
    guard type == wanted else {
      throw WireError(description: "field \(number) has the wire type \(type), expected \(wanted)")
    }
    return value
  }
}

/// A message field by field; what the caller does not know, it ignores.
func fields(_ message: Data) throws -> [Field] {
  let bytes = [UInt8](message)
  var at = 0
  var found: [Field] = []

  func take(_ count: UInt64) throws -> ArraySlice<UInt8> {
    guard count <= UInt64(bytes.count - at) else {
      throw WireError(description: "a message ends in the middle of a field")
    }
    defer { at += Int(count) }
    return bytes[at..<at + Int(count)]
  }

  func varint() throws -> UInt64 {
    var value: UInt64 = 0
    for shift in stride(from: UInt64(0), to: 64, by: 7) {
      let next = UInt64(try take(1).first!)
      value |= (next & 127) << shift
      if next < 128 { return value }
    }
    throw WireError(description: "a number in a message has more than ten bytes")
  }

  func fixed(_ count: UInt64) throws -> UInt64 {
    try take(count).reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }

  while at < bytes.count {
    let tag = try varint()
    var scalar: UInt64 = 0
    var content = Data()
    switch tag & 7 {
    case 0: scalar = try varint()
    case 1: scalar = try fixed(8)
    case 2: content = Data(try take(try varint()))
    case 5: scalar = try fixed(4)
    default: throw WireError(description: "a message has the wire type \(tag & 7)")
    }
    found.append(Field(number: Int(truncatingIfNeeded: tag >> 3), type: tag & 7, scalar: scalar, content: content))
  }
  return found
}
